"""The downsampling factors of the study, without torch."""

FS = (1, 2, 4, 8, 16, 32)  # f = 2^m of [LDM v2, Sec. 3.1]; 1 is the identity
