"""The codes of an audit's findings, and the sentences that users read: what was seen, and what to do about it.

CODES["EV205"]                                               # one line
MESSAGES["EV203"].format(lost=1, examples=128, which="images")
ADVICE["EV203"]                                              # sentences, which an audit says once (see `findings`)

A message says what was seen. A cause is named only where it is known: what else was seen of a model (`observation`)
stands beside.
"""

CODES: dict[str, str] = {
    "EV201": "input gradients are all zero",
    "EV202": "input gradients are NaN or infinite",
    "EV203": "logits are NaN or infinite",
    "EV204": "input gradients vanish in 16-bit precision",
    "EV205": "logits so large that the cross-entropy has no gradient",
    "EV206": "the output is piecewise constant",
    "EV207": "gradients are not the slope of the output",
    "EV208": "the output is the same for many different inputs",
    "EV209": "the output is the same for every image",
    "EV210": "the output changes with pixels whose gradient is zero",
    "EV211": "modules are in training mode and change the output",
    "EV212": "the output is not the same twice",
    "EV213": "an example's output depends on the rest of its batch, or its place there",
    "EV214": "the forward pass optimises",
    "EV215": "the forward pass changes the model",
    "EV216": "the gradient leads no further than very near the image",
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
    "EV289": "a repaired gradient breaks what PGD-20 did not",
}

NOTES = {"EV215", "EV225"}
"""What a reader should know, and no reason not to believe a figure; all others make it unreliable."""

RANDOM = {"EV212", "EV213"}
"""Of a model with one of these, two passes over an example may differ without anybody being at fault."""

MESSAGES: dict[str, str] = {
    "EV201": "{zero} of {examples} examples give an all-zero input gradient.{seen}",
    "EV202": "The input gradient is NaN or infinite for {lost} of {examples} {which}. torch.sign(NaN) is 0, so "
    "attacks do nothing.",
    "EV203": "Model returned NaN or infinity for {lost} of {examples} {which}. Counting them either way would be "
    "wrong.",
    "EV204": "{zero} of {examples} examples give an all-zero input gradient, and the model computes in 16 bits.",
    "EV205": "The logits of {saturated} of {examples} examples lead by so much that the softmax is exactly one-hot "
    "and the cross-entropy has no gradient.",
    "EV206": "A change of 1e-5 of every pixel left the output of {still} of {examples} examples the same to the last "
    "bit.{seen}",
    "EV207": "For {wrong} of {examples} examples the output changes by less than half or more than twice what the "
    "gradient promises.{seen}",
    "EV208": "The output for {same} of {examples} perturbed images is that of another image to the last bit.",
    "EV209": "The output is the same for all {examples} images: the model does not look at them.",
    "EV210": "For {moved} of {examples} examples the output changes with pixels whose gradient is zero, {share:.0%} of "
    "them.{seen}",
    "EV211": "{modules} modules are in training mode (first: {first}), which changes the output. The evaluation uses "
    "inference mode, so its result is not that of the model as given.",
    "EV212": "The same batch twice gave other logits for {differ} of {examples} examples: one pass is no "
    "verdict.{seen}",
    "EV213": "In another batch {differ} of {examples} examples have other logits: an example's output depends on "
    "{what}.{seen}",
    "EV214": "One forward pass called autograd {calls} times: the model optimises while it predicts, and attacks do "
    "not see through that.",
    "EV215": "The forward pass changes the model ({changes}): its answers may depend on what it was asked before, "
    "which no attack and no second pass takes into account.",
    "EV216": "An eighth of the radius from the image the margin of {lost} of {examples} examples rises by less than a "
    "fifth of what the gradient promises.{seen}",
    "EV221": "{seen} but the threat model is defined on [0,1]: {remedy}.",
    "EV222": "Clean accuracy {accuracy:.1%} with the declared preprocessing, {other:.1%} {change}.",
    "EV223": "Accuracy is {accuracy:.1%} but {other:.1%} with labels {change}.",
    "EV224": "All {examples} rows of the output are probabilities, so that the cross-entropy takes a second softmax, "
    "whose gradient vanishes where the model is sure.",
    "EV225": "All {examples} rows of the output are log-probabilities. They are logits up to a constant in each row, "
    "and every loss here gives the same figure for both.",
    "EV226": "{seen}",
    "EV227": "{seen}",
    "EV228": "Accuracy {accuracy:.1%} as fed, {other:.1%} with red and blue exchanged, and the loss of {nearer} of "
    "{examples} examples is lower so: the network was trained on channels in the other order (BGR, as OpenCV reads).",
    "EV229": "Accuracy is {accuracy:.1%} on {examples} examples, and always answering the commonest label gives "
    "{chance:.1%}. No preprocessing and no order of the classes explains it.",
    "EV281": "After 20 steps of PGD the loss of {flat} of {examples} examples is no higher than at the random start.",
    "EV282": "FGSM breaks {fgsm} of {examples} examples, PGD-20 {pgd}: many steps should do what one does.",
    "EV283": "Four random perturbations break {noise} of {examples} examples that PGD-20 did not.",
    "EV284": "PGD at radius {radius:.3g} leaves {accuracy:.0%} unbroken, though every image can be made plain grey "
    "there, on which no model is right more often than {chance:.0%}.",
    "EV285": "The largest probability of {sure} of {examples} examples rounds to 1, which costs the cross-entropy "
    "half of its gradient.",
    "EV286": "PGD-20 leaves {pgd_20} of {examples} examples unbroken, the whole suite {lost} fewer: gradients of the "
    "cross-entropy mislead on this model.",
    "EV287": "{attacks} broke {lost} of {examples} examples that no attack with gradients broke.",
    "EV288": "The audit breaks {lost} of {examples} examples that the evaluation did not ({which}). The "
    "reported robust accuracy is too high by about {share:.0%}.",
    "EV289": "A repaired gradient breaks {broken} of {examples} examples that PGD-20 did not.{seen}",
}

UPPER_BOUND = "The robust accuracy is an upper bound and may be far too high."
GRADIENT = "Let the gradient of what is computed through."
BLACK_BOX = "Attack without gradients: suite square."
OTHER_LOSSES = "The margin and DLR keep their gradient where the cross-entropy loses its: suites cw-100 and autoattack."
RESTARTS = "Attack with more restarts: suite pgd-100-r5."
STRONGER = "Attack with more losses and without gradients: suite autoattack."
OWN_ATTACK = (
    "Write an attack that is adapted to the model: a suite may be a dict of functions (model, x, y, *, threat), also "
    "as FILE.py:DICT."
)
MORE_QUERIES = (
    'Give Square more queries than it had: a suite may be a dict like {"square": AttackSpec(name="square", '
    "queries=50000)}, also as FILE.py:DICT."
)
CLIP = (
    "The model clips images to [0, 1] with no gradient on the bounds, as hardtanh does and, from torch 2.14 on, clamp: "
    "leave that out, for images are in [0, 1]."
)
TRANSFER = (
    "Try the adversarial examples of another model: toughen.evaluation.transfer(model, other, x, y, threat=threat)."
)

ADVICE: dict[str, tuple[str, ...]] = {
    "EV201": (UPPER_BOUND, GRADIENT, BLACK_BOX),
    "EV202": (
        UPPER_BOUND,
        "Find the operation: with torch.autograd.set_detect_anomaly(True): model(x.requires_grad_()).sum().backward().",
    ),
    "EV203": ("Look for a division by zero, a logarithm or an overflow in the model.",),
    "EV204": (UPPER_BOUND, "Compute in float32 throughout: model.float(), and no half() within."),
    "EV205": (UPPER_BOUND, "Divide the logits by a constant.", OTHER_LOSSES),
    "EV206": (UPPER_BOUND, BLACK_BOX),
    "EV207": (UPPER_BOUND, BLACK_BOX),
    "EV208": (
        "If the model rejects images so, count what it rejects apart, and attack what detects them too.",
        OWN_ATTACK,
    ),
    "EV209": ("Look for weights that were not loaded, a dead layer, or images that saturate the first one.",),
    "EV210": (UPPER_BOUND, GRADIENT, BLACK_BOX),
    "EV211": ("model.eval() before it is evaluated.",),
    "EV212": (),
    "EV213": (),
    "EV214": (UPPER_BOUND, OWN_ATTACK),
    "EV215": ("Let forward keep nothing from one pass to the next, or attack what it keeps as well.", OWN_ATTACK),
    "EV216": (UPPER_BOUND, BLACK_BOX),
    "EV221": (),
    "EV222": ("Normalise exactly once, as the network was trained, in the model's first layer.",),
    "EV223": ("Check the order of the classes (ImageFolder sorts by name) and whether labels start at 0.",),
    "EV224": ("Return the logits, not logits.softmax(1).",),
    "EV225": (),
    "EV226": (),
    "EV227": (),
    "EV228": (),
    "EV229": (
        "Were the weights loaded (toughen.models.load_weights(net, path)), and are these the classes that it was "
        "trained on?",
    ),
    "EV281": (UPPER_BOUND, STRONGER),
    "EV282": (UPPER_BOUND, RESTARTS, STRONGER),
    "EV283": (UPPER_BOUND, STRONGER),
    "EV284": (UPPER_BOUND, STRONGER),
    "EV285": (OTHER_LOSSES,),
    "EV286": ("Report the suite's figure, not that of PGD.",),
    "EV287": (UPPER_BOUND, MORE_QUERIES, OWN_ATTACK),
    "EV288": (),
    "EV289": (UPPER_BOUND, BLACK_BOX),
}
"""By code, what it means for the figure and what to do; what only a case itself knows is in a finding's `remedy`."""
