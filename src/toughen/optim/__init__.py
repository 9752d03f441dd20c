"""What acts on the weights around an optimiser step: schedules, averages, adversarial weight perturbation."""
