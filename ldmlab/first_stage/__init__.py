"""First stages, x <-> z: autoencoders, their regularizers, losses and training [LDM v2, Sec. 3.1, App. G]."""
