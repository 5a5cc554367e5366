"""What a trained teacher is worth: k-NN and linear layers (Sec. 4.3), correspondence and collapse (Sec. 4.6)."""
