"""D_aug, G and P (Sec. 3.2, Algorithm 2): from an image to views that know where they come from."""
