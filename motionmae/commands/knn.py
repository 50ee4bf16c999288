"""`motionmae knn`: check an encoder quickly, by classifying videos by nearest neighbours on frozen features."""

import argparse

from motionmae.commands.app import Command, add_json_argument, add_weights_arguments
from motionmae.errors import UserError
from motionmae.files import write_json
from motionmae.text import say

_DESCRIPTION = "Classify the central clip of each test video by its nearest training videos in feature space."
_EPILOG = """\
examples:
  motionmae knn runs/tiny_ut_interaction --train data/ut_interaction/train --test data/ut_interaction/val
  motionmae knn runs/vitb_k400 --train data/k400/train --test data/k400/val --step 50000 --json knn.json
  motionmae knn videomae-base --train data/ut_interaction/train --test data/ut_interaction/val"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--train", required=True, help="folder or URL of labelled shards")
    parser.add_argument("--test", required=True, help="folder or URL of labelled shards with the same classes")
    parser.add_argument("--k", type=int, default=20, help="number of neighbours (default: 20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="temperature of the votes (default: 0.07)")
    add_json_argument(parser, "top1", "chance")


def run(arguments: argparse.Namespace) -> int:

    import numpy as np

    from motionmae.config import EngineConfig
    from motionmae.data.held_out.shards import match_classes
    from motionmae.data.open_shards import open_reader
    from motionmae.data.shards.manifest import check_one_sample_per_video
    from motionmae.distributed.context import rank_zero_first
    from motionmae.distributed.process_group import distributed
    from motionmae.evaluation.features import features_of_shards
    from motionmae.evaluation.load_model import choose_weights, load_embedding
    from motionmae.evaluation.multiview_test import labels_of
    from motionmae.training.validation.nearest import classify_by_neighbours

    if arguments.k < 1 or arguments.temperature <= 0:
        given = f"--k {arguments.k} --temperature {arguments.temperature:g}"
        raise UserError(f"--k must be at least 1 and --temperature positive, not {given}")
    with distributed(EngineConfig()) as rank:
        source = choose_weights(rank, arguments.weights, arguments.step, arguments.settings)
        model, loaded = rank_zero_first(rank, lambda: load_embedding(source))
        config = loaded.config
        readers = [open_reader(shards, data=config.data) for shards in (arguments.train, arguments.test)]
        for reader in readers:
            check_one_sample_per_video(reader.manifest, reader.folder, "k-NN")
        names = readers[0].manifest.class_names
        logits = match_classes(names, readers[1].manifest.class_names, arguments.test)
        work = source.results / "knn"
        train, test = (features_of_shards(model, config, reader, work, rank) for reader in readers)
        if rank.is_rank_zero:
            for part, shards in ((train, arguments.train), (test, arguments.test)):
                for reason in part.unreadable.values():
                    say(f"not read: {reason}")
                if not part.values:
                    raise UserError(
                        f"none of the {len(part.unreadable)} videos of {shards} could be read: "
                        f"check them with `motionmae shards verify {shards}`"
                    )
            train_labels = labels_of(readers[0], train, np.arange(len(names)))
            truth = labels_of(readers[1], test, logits)
            rows = [np.stack(list(part.values.values())) for part in (train, test)]
            found = classify_by_neighbours(rows[0], train_labels, rows[1], arguments.k, arguments.temperature)
            report = {
                "step": loaded.step,
                "top1": float(100 * (found == truth).mean()),
                "chance": float(100 * np.bincount(truth).max() / len(truth)),
                "videos": len(truth),
                "missing": len(test.unreadable),
                "train_missing": len(train.unreadable),
            }
            say(
                f"{loaded.title}: {report['top1']:.1f} % of {len(truth)} videos by {arguments.k} neighbours "
                f"(most frequent class: {report['chance']:.1f} %; not read: {len(test.unreadable)} of these, "
                f"{len(train.unreadable)} of the training videos)"
            )
            if arguments.json:
                write_json(arguments.json, report)
    return 0


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EPILOG)
