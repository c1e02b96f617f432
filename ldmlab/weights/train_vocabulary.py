"""Learn the WordPiece vocabulary of `scenes` from its captions: `python -m ldmlab.weights.train_vocabulary`."""

from ldmlab.data.scenes.scene import render_scene
from ldmlab.diffusion.conditioning.captions import SCENES_VOCABULARY, train_vocabulary

NUM_CAPTIONS = 4_000  # each word of `scenes` occurs in some two hundred of them or more

if __name__ == "__main__":
    captions = [render_scene(0, "train", index, 32).caption for index in range(NUM_CAPTIONS)]
    print(train_vocabulary(captions, SCENES_VOCABULARY) / "vocab.txt")
