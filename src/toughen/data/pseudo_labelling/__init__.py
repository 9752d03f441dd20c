"""Extra training sets: a pool of images scored, freed of test images, chosen and written."""
