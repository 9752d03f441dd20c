"""What is drawn of a model beside its accuracy: sweeps, gradients, surfaces, image grids, transfer."""
