"""Warning about a decoder head that still predicts the mean of its target."""

import math
from collections.abc import Callable
from itertools import islice

import torch
import torch.distributed as dist

from motionmae.config import Config
from motionmae.data.loader import Batch, ClipLoader, DevicePrefetcher
from motionmae.distributed.context import DistributedContext, gather_objects
from motionmae.distributed.watchdog import Watchdog
from motionmae.engine.deepspeed_engine import Engine
from motionmae.errors import UserError
from motionmae.models.motionmae import masked_targets
from motionmae.models.targets import loss_of
from motionmae.runs.events import Row
from motionmae.training.callbacks.base import Callback

CLIPS = 64
"""Clips that the check reads, over all ranks, or the next multiple of a micro-batch of every rank."""
LEAST_EXPLAINED = 0.01
"""A head that explains a smaller share of its target's variance counts as stalled."""


class StalledHeads(Callback):
    """Callback that checks the heads once and warns of stalled heads, without an effect on training.

    The check comes with the first row of metrics after ``log.stalled_head_clips`` clips and the warm-up.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        rank: DistributedContext,
        steps_per_epoch: int,
        watchdog: Watchdog,
        log: Callable[[str], None],
    ) -> None:
        self._config, self._engine, self._rank, self._watchdog, self._log = config, engine, rank, watchdog, log
        self._clips_per_step = config.optim.global_batch_size * config.data.repeated_sampling
        warmup = math.ceil(config.optim.warmup_epochs * steps_per_epoch)
        clips = config.log.stalled_head_clips
        self._due_step = max(math.ceil(clips / self._clips_per_step), warmup) if clips else math.inf

    def on_log(self, row: Row) -> None:
        if not row["step"] - row["steps"] < self._due_step <= row["step"]:
            return
        with self._watchdog.during("checking the decoder heads", self._watchdog.limits.startup_seconds):
            batches, error = self._first_batches()
            if fault := next(filter(None, gather_objects(error)), ""):
                self._log(f"the decoder heads were not checked ({fault}); training continues")
                return
            for head, explained in self.explained_variance(batches).items():
                if explained < LEAST_EXPLAINED:
                    self._log(
                        f"the {head} head explains {100 * max(explained, 0.0):.1f} % of the variance of its target "
                        f"after {row['step'] * self._clips_per_step:,} clips, little more than the target's mean: "
                        f"start a new run with {self._remedy(head)}"
                    )

    def explained_variance(self, batches: list[Batch]) -> dict[str, float]:
        """Return 1 - loss / loss of the mean target for each head. All ranks must call this."""
        kind = self._config.target.loss
        means = self._over_ranks([{name: t.mean((0, 1)) for name, t in self._targets(b).items()} for b in batches])
        rows = []
        for batch in batches:
            targets = self._targets(batch)
            with torch.no_grad():
                losses = self._engine(batch.clips, batch.seeds, batch.flow)
            baselines = {name: loss_of(means[name].expand_as(t), t, kind) for name, t in targets.items()}
            rows.append({name: torch.stack([getattr(losses, name), baselines[name]]) for name in targets})
        return {name: 1 - float(found / baseline) for name, (found, baseline) in self._over_ranks(rows).items()}

    def _first_batches(self) -> tuple[list[Batch], str]:
        """Return this rank's part of the first clips of the stream, on the device, and the error if reading failed."""
        config, rank = self._config, self._rank
        micro = config.engine.micro_batch_size
        data = config.data.model_copy(update={"workers": 0, "prefetch": 1})
        count = math.ceil(CLIPS / (micro * rank.world * data.repeated_sampling))
        try:
            loader = ClipLoader(
                data,
                config.clip,
                seed=config.seed,
                batch=micro * rank.world,
                micro_batch_size=micro,
                rank=rank.rank,
                world=rank.world,
                flow=config.target.needs_flow,
                pinned=rank.device.type == "cuda",
            )
            with loader:
                return list(islice(DevicePrefetcher(rank.device)(loader.batches(0)), count)), ""
        except (OSError, UserError) as error:  # an outage of the server must not end the run
            return [], str(error)

    def _targets(self, batch: Batch) -> dict[str, torch.Tensor]:
        return masked_targets(self._config, batch.clips, batch.seeds, batch.flow)

    def _over_ranks(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Average tensors by name over micro-batches and ranks. All ranks must call this."""
        averages = {name: torch.stack([row[name].float() for row in rows]).mean(0) for name in rows[0]}
        for value in averages.values():
            dist.all_reduce(value)
        return {name: value / self._rank.world for name, value in averages.items()}

    def _remedy(self, head: str) -> str:
        """Return the settings that a stalled run lacks."""
        model, target = self._config.model, self._config.target
        settings = {
            "model.patch_embed_init=whitened": model.patch_embed_init != "whitened",
            "model.pos_embed=separate": model.pos_embed != "separate",
            "model.decoder_init=local": model.decoder_init != "local",
            "target.motion_norm=clip": head == "time" and target.normalize and target.motion_norm != "clip",
        }
        return ", ".join(name for name, lacks in settings.items() if lacks) or "another optim.base_lr"
