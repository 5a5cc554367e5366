"""The frozen teacher as an encoder of images: z̄ and z."""
