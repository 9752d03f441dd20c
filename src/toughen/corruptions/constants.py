"""How strong each corruption is: five severities, for photographs (ImageNet) and for 32 pixels (CIFAR).

From Hendrycks and Dietterich 2019: the CIFAR column is that of make_cifar_c.py, from which the published CIFAR-10-C was
made; the ImageNet column is that of make_imagenet_c.py as the package imagecorruptions carries it on. That package
differs from the script in six places: `elastic_transform` (strengths of its own, which scale with the image, and no
affine map), `pixelate` (enlarged by nearest neighbour), `zoom_blur` and `snow` (the corner of the enlarged image, not
its centre), `frost` (six photographs, not five, enlarged by 1.1), and the line of `motion_blur` and `snow`, which the
script leaves to ImageMagick; we draw that line in the same way for both columns.
Where the two columns differ in a step, the step is part of the constants.

    SETS["cifar"]["gaussian_noise"][severity - 1]
"""

from typing import Any

Severities = tuple[Any, Any, Any, Any, Any]

IMAGENET: dict[str, Severities] = {
    # standard deviation
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    # photons at full brightness
    "shot_noise": (60, 25, 12, 5, 3),
    # share of values that are lost
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    # radius of the disk, width of the Gaussian that smooths its edge
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    # width of the Gaussian, furthest neighbour, passes
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    # radius, width of the Gaussian along the line
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    # zoom factors as start, stop and step of numpy.arange, whose last member depends on rounding; the part that is kept
    "zoom_blur": (
        (1, 1.11, 0.01, "corner"),
        (1, 1.16, 0.01, "corner"),
        (1, 1.21, 0.02, "corner"),
        (1, 1.26, 0.02, "corner"),
        (1, 1.31, 0.03, "corner"),
    ),
    # mean and standard deviation of the flakes, zoom, threshold, radius and width of the blur, share of the image, part
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8, "corner"),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7, "corner"),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7, "corner"),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65, "corner"),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55, "corner"),
    ),
    # weights of image and frost, pixels of the photograph per pixel, number of photographs
    "frost": ((1, 0.4, 1, 6), (0.8, 0.6, 1, 6), (0.7, 0.7, 1, 6), (0.65, 0.7, 1, 6), (0.6, 0.75, 1, 6)),
    # thickness, decay of the fractal from one scale to the next
    "fog": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    # added to the value in HSV
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    # factor of the distance from the mean
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    # as shares of the side: strength and width of the displacement, how far the affine map moves its three points
    "elastic_transform": (
        (0.0625, 0.01, 0),
        (0.08125, 0.01, 0),
        (0.10625, 0.01, 0),
        (0.125, 0.01, 0),
        (0.15, 0.01, 0),
    ),
    # share of the side, how it is enlarged
    "pixelate": ((0.6, "nearest"), (0.5, "nearest"), (0.4, "nearest"), (0.3, "nearest"), (0.25, "nearest")),
    # quality
    "jpeg_compression": (25, 18, 15, 10, 7),
    # standard deviation relative to the value
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    # width
    "gaussian_blur": (1, 2, 3, 4, 6),
    # mean, standard deviation and blur of the liquid, threshold, strength of water or blur of mud, which of the two
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, "water"),
        (0.65, 0.3, 3, 0.68, 0.6, "water"),
        (0.65, 0.3, 2, 0.68, 0.5, "water"),
        (0.65, 0.3, 1, 0.65, 1.5, "mud"),
        (0.67, 0.4, 1, 0.65, 1.5, "mud"),
    ),
    # factor of the saturation in HSV, added to it
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}

CIFAR: dict[str, Severities] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (
        (1, 1.06, 0.01, "centre"),
        (1, 1.11, 0.01, "centre"),
        (1, 1.16, 0.01, "centre"),
        (1, 1.21, 0.01, "centre"),
        (1, 1.26, 0.01, "centre"),
    ),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95, "centre"),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9, "centre"),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9, "centre"),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85, "centre"),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8, "centre"),
    ),
    # The script draws from the first five of its six photographs.
    "frost": ((1, 0.2, 5, 5), (1, 0.3, 5, 5), (0.9, 0.4, 5, 5), (0.85, 0.4, 5, 5), (0.75, 0.45, 5, 5)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": ((0.95, "box"), (0.9, "box"), (0.85, "box"), (0.75, "box"), (0.65, "box")),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
        (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
        (0.65, 0.3, 1, 0.69, 0.5, "water"),
        (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
        (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}

SETS: dict[str, dict[str, Severities]] = {"cifar": CIFAR, "imagenet": IMAGENET}
