"""What ranks say to each other while they compute: sums, gathered rows, the residual stream from stage to stage."""
