"""Rows of `paper.csv` that describe the same model under different names, in tables, text and released files."""

Place = tuple[str, str]  # table, row

# Names of the same model in Tab. 12-15, the text and the released files, by its name "data / model" in other tables.
# Rows with equal names of that form are the same model in every table.
ALIASES: dict[str, tuple[Place, ...]] = {
    "CelebA-HQ / LDM-4": (("Tab. 12", "CelebA-HQ"), ("Released", "celeba256")),
    "FFHQ / LDM-4": (("Tab. 12", "FFHQ"), ("Released", "ffhq256")),
    "LSUN-Churches / LDM-8": (("Tab. 12", "LSUN-Churches"), ("Released", "lsun_churches256")),
    "LSUN-Bedrooms / LDM-4": (("Tab. 12", "LSUN-Bedrooms"), ("Released", "lsun_beds256")),
    "ImageNet / LDM-4": (("Tab. 15", "class ImageNet"), ("Released", "cin256-v2")),
    "ImageNet / LDM-8": (("Released", "cin256"),),
    "MS-COCO / LDM-KL-8": (("Tab. 15", "text LAION"), ("Released", "txt2img-1p4B")),
    "ImageNet x4 / LDM-4": (("Tab. 15", "super-resolution ImageNet"),),
    "Landscapes / LDM": (("Tab. 15", "semantic Landscapes"), ("Sec. 4.3.2", "semantic Landscapes"),
                         ("Released", "semantic_synthesis256")),
    "Places / LDM-4": (("Tab. 15", "inpainting Places"), ("Sec. 4.5", "inpainting Places")),
    "VQ-f4": (("Tab. 8", "VQ-f4 Z8192"), ("Tab. 18", "ImageNet / VQGAN-f4"), ("Fig. 1", "VQ-f4 Z8192")),
    "VQ-f8": (("Tab. 8", "VQ-f8 Z16384"), ("Tab. 18", "ImageNet / VQGAN-f8")),
    "DALL-E": (("Tab. 8", "DALL-E f8 Z8192"), ("Fig. 1", "DALL-E f8 Z8192")),
    "VQGAN": (("Tab. 8", "VQGAN f16 Z16384"), ("Fig. 1", "VQGAN f16 Z16384")),
}
# Separate trainings of the same architecture: only the number of parameters has to agree.
SAME_SIZE: dict[str, tuple[Place, ...]] = {
    "ImageNet / LDM-4": (("Tab. 13", "LDM-4"),), "ImageNet / LDM-8": (("Tab. 13", "LDM-8"),)}
# Rows for which a released configuration gives the base learning rate, to be multiplied by the batch size.
BASE_RATES: tuple[tuple[Place, str], ...] = (
    (("Tab. 12", "CelebA-HQ"), "celeba256"), (("Tab. 12", "FFHQ"), "ffhq256"),
    (("Tab. 12", "LSUN-Bedrooms"), "lsun_beds256"), (("Tab. 13", "LDM-8"), "cin256"),
    (("Tab. 15", "layout OpenImages"), "layout2img-openimages256"),
    (("Tab. 15", "semantic Landscapes"), "semantic_synthesis256"), (("Tab. 15", "inpainting Places"), "inpainting_big"))
# Rows for which a released configuration gives the number of attention heads.
HEADS: tuple[tuple[Place, str], ...] = (
    (("Tab. 13", "LDM-8"), "cin256"), (("Tab. 15", "text LAION"), "txt2img-1p4B"),
    (("Tab. 15", "layout OpenImages"), "layout2img-openimages256"), (("Tab. 15", "class ImageNet"), "cin256-v2"),
    (("Tab. 15", "semantic Landscapes"), "semantic_synthesis256"))
