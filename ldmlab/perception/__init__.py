"""Feature networks for the perceptual loss [LDM v2, App. G] and for scores; no network serves both.

Scores from the network that a model was trained with would not show its blind spots. Nothing is downloaded here.
"""
