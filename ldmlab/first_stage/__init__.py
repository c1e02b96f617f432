"""x <-> z: autoencoders, their regularizers and losses [LDM v2, Sec. 3.1, App. G]."""
