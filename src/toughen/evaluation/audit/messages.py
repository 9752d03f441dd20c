"""The codes of an audit's findings, and the sentences that users read: what was seen, what it means, what to do.

CODES["EV205"]                                               # one line
MESSAGES["EV203"].format(lost=1, examples=128, which="images")
"""

CODES: dict[str, str] = {
    "EV201": "input gradients are all zero",
    "EV202": "input gradients are NaN or infinite",
    "EV203": "logits are NaN or infinite",
    "EV204": "input gradients vanish in 16-bit precision",
    "EV205": "logits so large that the cross-entropy has no gradient",
    "EV206": "the output is piecewise constant: the model quantises",
    "EV207": "gradients are not the slope of the output",
    "EV208": "the output is the same for many different inputs",
    "EV209": "the output is the same for every image",
    "EV211": "modules are in training mode and change the output",
    "EV212": "the output is random",
    "EV213": "an example's output depends on the other examples of its batch",
    "EV214": "the forward pass optimises",
    "EV221": "images or radius are not in the units of [0, 1]",
    "EV222": "normalisation missing or doubled",
    "EV223": "labels shifted or in another order",
    "EV224": "the model returns probabilities",
    "EV225": "the model returns log-probabilities",
    "EV226": "the model does not run on the images",
    "EV227": "labels or classes do not fit the number of logits",
    "EV228": "red and blue exchanged",
    "EV229": "no better than guessing",
    "EV281": "the loss does not rise with the steps of PGD",
    "EV282": "FGSM is stronger than PGD-20",
    "EV283": "random noise is stronger than PGD-20",
    "EV284": "accuracy does not come down at a radius that reaches grey images",
    "EV285": "another loss breaks what PGD-20 did not",
    "EV286": "PGD-20 is far above the strongest attack",
    "EV287": "an attack without gradients breaks what none with gradients did",
    "EV288": "the audit breaks what the evaluation did not",
}

RANDOM = {"EV212", "EV213"}
"""Of a model with one of these, two passes over an example may differ without anybody being at fault."""

UPPER_BOUND = "The robust accuracy is an upper bound and may be far too high"
"""What {upper_bound} is in a message."""

MESSAGES: dict[str, str] = {
    "EV201": "{zero} of {examples} examples give an all-zero input gradient. {upper_bound}; let the gradient through, "
    "or attack without it (square).",
    "EV202": "The input gradient is NaN or infinite for {lost} of {examples} {which}. torch.sign(NaN) is 0, so "
    "attacks do nothing; find the operation with torch.autograd.set_detect_anomaly(True).",
    "EV203": "Model returned NaN or infinity for {lost} of {examples} {which}. Counting them either way would be "
    "wrong; look for a division by zero, a logarithm or an overflow in the model.",
    "EV204": "{zero} of {examples} examples give an all-zero input gradient, and the model computes in 16 bits. "
    "{upper_bound}; run it in float32.",
    "EV205": "The logits of {saturated} of {examples} examples lead by so much that the softmax is exactly one-hot "
    "and the cross-entropy has no gradient. {upper_bound}; divide the logits by a constant, or attack with loss "
    "margin.",
    "EV206": "A change of 1e-5 of every pixel left the output of {still} of {examples} examples the same to the last "
    "bit: the model quantises its input or its activations. {upper_bound}; use straight-through gradients, or attack "
    "without gradients (square).",
    "EV207": "For {wrong} of {examples} examples the output changes by less than half or more than twice what the "
    "gradient promises. {upper_bound}; remove stand-ins for derivatives, or attack without gradients (square).",
    "EV208": "The output for {same} of {examples} perturbed images is that of another image to the last bit: the "
    "model answers with a constant, like a detector that rejects. Count what it rejects apart, and attack the "
    "detector too.",
    "EV209": "The output is the same for all {examples} images: the model does not look at them. Look for weights "
    "that were not loaded, a dead layer, or images that saturate the first one.",
    "EV211": "{modules} modules are in training mode (first: {first}), which changes the output. The evaluation uses "
    "inference mode, so its result is not that of the model as given; call eval().",
    "EV212": "The same batch twice gave other logits for {differ} of {examples} examples: the model is random, and "
    "one draw is no verdict. Fix the randomness, or attack the mean over many draws.",
    "EV213": "In another batch {differ} of {examples} examples have other logits: an example's output depends on its "
    "company. Give BatchNorm running statistics and call eval().",
    "EV214": "One forward pass called autograd {calls} times: the model optimises while it predicts, and attacks do "
    "not see through that. {upper_bound}; attack the optimisation as a whole.",
    "EV221": "{seen} but the threat model is defined on [0,1]: {remedy}.",
    "EV222": "Clean accuracy {accuracy:.1%} with the declared preprocessing, {other:.1%} {change}. Normalise exactly "
    "once, as the network was trained, in the model's first layer.",
    "EV223": "Accuracy is {accuracy:.1%} but {other:.1%} with labels {change}. Check the order of the classes "
    "(ImageFolder sorts by name) and whether labels start at 0.",
    "EV224": "All {examples} rows of the output are probabilities, so that the cross-entropy takes a second softmax, "
    "whose gradient vanishes where the model is sure. Return the logits, before the softmax.",
    "EV225": "All {examples} rows of the output are log-probabilities, which keep fewer digits than logits, and "
    "nothing of their size. Return the logits, before the log-softmax.",
    "EV226": "{seen}",
    "EV227": "{seen}",
    "EV228": "Accuracy {accuracy:.1%} as fed, {other:.1%} with red and blue exchanged, and the loss of {nearer} of "
    "{examples} examples is lower so: the network was trained on channels in the other order (BGR, as OpenCV reads).",
    "EV229": "Accuracy is {accuracy:.1%} on {examples} examples, and always answering the commonest label gives "
    "{chance:.1%}. No preprocessing and no order of the classes explains it: were the weights loaded, and are these "
    "the classes it was trained on?",
    "EV281": "After 20 steps of PGD the loss of {flat} of {examples} examples is no higher than at the random start. "
    "{upper_bound}; try another loss or step size, and attack without gradients (square).",
    "EV282": "FGSM breaks {fgsm} of {examples} examples, PGD-20 {pgd}: many steps should do what one does. "
    "{upper_bound}; try other step sizes and restarts.",
    "EV283": "Four random perturbations break {noise} of {examples} examples that PGD-20 did not. "
    "{upper_bound}; attack without gradients (square), or on many draws at a time if the model is random.",
    "EV284": "PGD at radius {radius:.3g} leaves {accuracy:.0%} unbroken, though every image can be made plain grey "
    "there, on which no model is right more often than {chance:.0%}. {upper_bound}; try other losses and square.",
    "EV285": "The largest probability of {sure} of {examples} examples rounds to 1, which costs the cross-entropy "
    "half of its gradient. Attack with loss margin or dlr too.",
    "EV286": "PGD-20 leaves {pgd_20} of {examples} examples unbroken, the whole suite {lost} fewer. Gradients of the "
    "cross-entropy mislead on this model; report the suite's figure, not that of PGD, and look at the loss surface.",
    "EV287": "{attacks} broke {lost} of {examples} examples that no attack with gradients broke. "
    "{upper_bound}; raise the queries, and write an attack that is adapted to the model.",
    "EV288": "The audit breaks {lost} of {examples} examples that the evaluation did not ({which}). The "
    "reported robust accuracy is too high by about {share:.0%}; attack with the remedy that the other findings name.",
}
