"""Replays of layouts as tokens."""

from ldmlab.data.annotations.annotation import WHOLE, Box
from ldmlab.diffusion.conditioning.boxes import BoxFlag, BoxTokenizer

from .case import Case


def replay_boxes(case: Case) -> None:
    """Every picture of a case: its tokens, how many there are, and what the tokens say again."""
    settings = case.config.get("builder", case.config)
    tokenizer = BoxTokenizer(
        settings["no_object_classes"],
        settings["no_tokens"],
        settings["no_max_objects"],
        settings["encode_crop"],
        settings["use_group_parameter"],
        settings["use_additional_parameters"],
    )
    for k, picture in enumerate(case.config["images"]):
        boxes, labels, crop, order, said = (
            case.arrays[f"in.img{k}.{name}"].tolist()
            for name in ("bbox", "category_no", "crop", "shuffle_permutation", "flags_group_occ_depict_inside")
        )
        given = [Box("", label, x, y, x + w, y + h) for label, (x, y, w, h) in zip(labels, boxes, strict=True)]
        flags = [sum(flag for flag, is_set in zip(BoxFlag, row, strict=True) if is_set) for row in said]
        crop = WHOLE if min(crop) < 0 else tuple(crop)
        tokens = tokenizer.encode(given, crop, flip=picture["flip"], order=order, flags=flags)
        case.compare(f"out.img{k}.tokens", tokens)
        if f"out.img{k}.embedding_dim" in case.arrays:
            case.compare(f"out.img{k}.embedding_dim", tokenizer.length)
        said_again = [[c, [x0, y0, x1 - x0, y1 - y0]] for c, (x0, y0, x1, y1) in tokenizer.decode(tokens)]
        assert said_again == picture["inverse"], f"{case.name}: {said_again} is not {picture['inverse']}"
        crop = tokenizer.decode_crop(tokens)
        assert (crop and list(crop)) == picture["crop_inverse"], f"{case.name}: {crop} is not {picture['crop_inverse']}"


REPLAYS = {"ObjectsBoundingBoxConditionalBuilder": replay_boxes}
