"""darkarc: calibrated posteriors of dark-matter properties from images of strong lenses."""
