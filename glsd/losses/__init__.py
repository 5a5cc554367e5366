"""The self-supervised loss (Sec. 3.4, A.2): Eq. 3, L_G, L_L and the total objective."""
