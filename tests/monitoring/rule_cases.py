"""Cases of the alert and recording rules: what is scraped every minute, and what then fires or is recorded.

Test time begins at 0. A condition that turns true shall do so in minute 21 (:func:`_turns`); an alert with ``for: 5m``
then fires in minute 26 and not in minute 25.
"""

from typing import NamedTuple

TRAINING = 'run_state{run="r",state="training"} 1x300'
GONE_AT_20 = "1x20 _x300"
SAVED = 'checkpoint_last_success_timestamp_seconds{run="r"}'
AT_20 = "0+60x20 1200x300"
"""A moment that follows the clock for 20 minutes and then stands still."""


class Case(NamedTuple):
    """What is scraped every minute, and how many alerts then fire after how many minutes."""

    alert: str
    name: str
    series: list[str]
    minutes: int
    firing: int


class Value(NamedTuple):
    """What is scraped every minute, and the samples of the rule's expression after some seconds, rounded to 0.001."""

    rule: str
    name: str
    series: list[str]
    seconds: int
    samples: dict[str, float]


def ago(seconds: int) -> str:
    """A moment that is always this long ago."""
    return f"-{seconds}+60x300"


def _turns(before: float, after: float) -> str:
    return f"{before}x20 {after}x300"


def _gpu(metric: str, values: str, gpu: int = 0, **labels: str) -> str:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return f'{metric}{{run="r",instance="r/0",gpu="{gpu}",UUID="u"{more}}} {values}'


def _disk(volume: str, free: str) -> list[str]:
    where = f'{{run="r",instance="r/0",volume="{volume}"}}'
    return [f"disk_free_bytes{where} {free}", f"disk_size_bytes{where} 1000x300"]


def _ranks(*moments: str) -> list[str]:
    return [
        f'last_step_timestamp_seconds{{run="r",instance="r/{rank}",rank="{rank}"}} {values}'
        for rank, values in enumerate(moments)
    ]


def _phases(waiting: float, before: str = "") -> list[str]:
    return [
        f'phase_seconds_total{{run="r",rank="0",phase="data_wait"}} {before}0+{waiting}x300',
        f'phase_seconds_total{{run="r",rank="0",phase="forward"}} {before}0+{60 - waiting}x300',
    ]


def _goodput(ratio: str, seconds: int, included: str = "0.5x300", causes: tuple[str, ...] = ("init",)) -> list[str]:
    return [
        f'goodput_ratio{{run="r",queue="excluded"}} {ratio}',
        f'goodput_ratio{{run="r",queue="included"}} {included}',
        f'productive_seconds{{run="r"}} {seconds}x300',
        *(f'badput_seconds{{run="r",cause="{cause}"}} 600x300' for cause in causes),
    ]


def _info(values: str, **states: str) -> list[str]:
    """A run with its states, each with a value of its own; ``training`` by default."""
    return [
        f'run_info{{run="r",git_sha="a"}} {values}',
        *(f'run_state{{run="r",state="{state}"}} {each}' for state, each in (states or {"training": values}).items()),
    ]


def _loss(values: str, component: str = "total") -> str:
    return f'loss{{run="r",component="{component}"}} {values}'


def _score(values: str) -> list[str]:
    return [f'straggler_score{{run="r",rank="3",instance="r/0"}} {values}']


def _restarts(values: str, reason: str = "lost") -> str:
    return f'restarts_total{{run="r",reason="{reason}"}} {values}'


def _corrupt(values: str, reason: str = "decode", rank: int = 0) -> str:
    return f'corrupt_samples_total{{run="r",rank="{rank}",reason="{reason}"}} {values}'


def _nonfinite(values: str, kind: str = "loss") -> str:
    return f'nonfinite_steps_total{{run="r",kind="{kind}"}} {values}'


def _up(values: str, job: str = "motionmae") -> str:
    return f'up{{job="{job}",run="r",instance="r/0"}} {values}'


def _state(state: str, values: str = "1x300") -> str:
    return f'run_state{{run="r",state="{state}"}} {values}'


def _age(values: str, rank: int = 0, node: int = 0) -> str:
    return f'snapshot_age_seconds{{run="r",instance="r/{node}",rank="{rank}"}} {values}'


IDLE, BUSY = _gpu("gpu_utilization_ratio", "0.02x300"), _gpu("gpu_utilization_ratio", "1x300")
TRAINING_CASES = [
    Case("NonFiniteLoss", "at once", [_nonfinite("0x10 1x300")], 11, 1),
    Case("NonFiniteLoss", "14 minutes ago", [_nonfinite("0x10 1x300")], 24, 1),
    Case("NonFiniteLoss", "15 minutes ago", [_nonfinite("0x10 1x300")], 26, 0),
    Case("NonFiniteLoss", "quiet", [_nonfinite("3x300")], 15, 0),
    Case("NonFiniteLoss", "fp16 finds its scale", [_nonfinite("0+1x300", "overflow")], 15, 0),
    Case("LossSpike", "quiet", [_loss("1x300")], 68, 0),
    Case("LossSpike", "no loss at all", [_loss("0x300")], 68, 0),
    Case("LossSpike", "for five minutes", [_loss("5x60 1x60 2.3x300")], 127, 1),
    Case("LossSpike", "not yet for five minutes", [_loss("5x60 1x60 2.3x300")], 126, 0),
    Case("LossSpike", "no more twice its mean in five minutes", [_loss("1x120 2.15x300")], 127, 0),
    Case("LossSpike", "one row", [_loss("1x60 9 1x300")], 68, 0),
    Case("LossSpike", "one part of the loss", [_loss("1x300"), _loss("1x120 9x300", "space")], 127, 0),
    Case("Stalled", "moves", [*_ranks("0+60x300"), TRAINING], 26, 0),
    Case("Stalled", "for 310 seconds", [*_ranks(ago(310)), TRAINING], 26, 1),
    Case("Stalled", "for 290 seconds", [*_ranks(ago(290)), TRAINING], 26, 0),
    Case("Stalled", "for 300 seconds", [*_ranks(ago(300)), TRAINING], 26, 0),
    Case("Stalled", "one rank moves", [*_ranks(AT_20, "0+60x300"), TRAINING], 40, 0),
    Case("Stalled", "finished", [*_ranks(AT_20), _state("training", "1x20 0x300")], 26, 0),
    Case("Stalled", "finished and not training", [*_ranks(AT_20), _state("finished")], 26, 0),
    Case("Stalled", "starts for 910 seconds", [_state("starting"), _age("910x300")], 16, 1),
    Case("Stalled", "starts for 890 seconds", [_state("starting"), _age("890x300")], 16, 0),
    Case("Stalled", "starts for 900 seconds", [_state("starting"), _age("900x300")], 16, 0),
    Case("Stalled", "hangs in its first step", [TRAINING, _age("910x300")], 16, 1),
    Case("Stalled", "stopped before its first step", [_state("stopped"), _age("910x300")], 16, 0),
    Case("Stalled", "starts no more", [_state("starting", "0x300"), _age("910x300")], 16, 0),
    Case("Stalled", "another rank is silent", [TRAINING, _age("910x300", 1), _age("1x300")], 16, 0),
    Case("Stalled", "logs a step now and then", [*_ranks(ago(290)), TRAINING, _age("910x300")], 26, 0),
    Case("RankBehind", "quiet", _ranks("0+60x300", "0+60x300"), 25, 0),
    Case("RankBehind", "by 130 seconds", _ranks("0+60x300", ago(130)), 25, 1),
    Case("RankBehind", "by 110 seconds", _ranks("0+60x300", ago(110)), 25, 0),
    Case("RankBehind", "by 120 seconds", _ranks("0+60x300", ago(120)), 25, 0),
    Case("RankBehind", "for a minute", _ranks("0+60x300", AT_20), 24, 1),
    Case("RankBehind", "not yet for a minute", _ranks("0+60x300", AT_20), 23, 0),
    Case("DataStarved", "quiet", _phases(3), 20, 0),
    Case("DataStarved", "above the limit", _phases(12.6), 20, 1),
    Case("DataStarved", "below the limit", _phases(11.4), 20, 0),
    Case("DataStarved", "at the limit", _phases(12), 20, 0),
    Case("DataStarved", "for ten minutes", _phases(30, before="_x20 "), 31, 1),
    Case("DataStarved", "not yet for ten minutes", _phases(30, before="_x20 "), 30, 0),
    Case("Straggler", "above the limit", _score("1.55x300"), 20, 1),
    Case("Straggler", "below the limit", _score("1.45x300"), 20, 0),
    Case("Straggler", "at the limit", _score("1.5x300"), 20, 0),
    Case("Straggler", "its mean for five minutes", _score(_turns(1, 2)), 31, 1),
    Case("Straggler", "its mean not yet for five minutes", _score(_turns(1, 2)), 30, 0),
    Case("Straggler", "for a moment", _score("1x10 2x2 1x300"), 20, 0),
    Case("LowGoodput", "below the limit", _goodput("0.79x300", 4000), 20, 1),
    Case("LowGoodput", "above the limit", _goodput("0.81x300", 4000), 20, 0),
    Case("LowGoodput", "at the limit", _goodput("0.8x300", 4000), 20, 0),
    Case("LowGoodput", "for 15 minutes", _goodput(_turns(0.9, 0.5), 4000), 36, 1),
    Case("LowGoodput", "not yet for 15 minutes", _goodput(_turns(0.9, 0.5), 4000), 35, 0),
    Case("LowGoodput", "waits in the queue only", _goodput("0.9x300", 4000, included="0.1x300"), 20, 0),
    Case("LowGoodput", "older than an hour", _goodput("0.5x300", 3050), 20, 1),
    Case("LowGoodput", "too young to tell", _goodput("0.5x300", 2950), 20, 0),
    Case("LowGoodput", "an hour", _goodput("0.5x300", 3000), 20, 0),
    Case("LowGoodput", "older by two causes", _goodput("0.5x300", 2500, causes=("init", "restore")), 20, 1),
    Case("CorruptSamples", "at once", [_corrupt("0x10 2x300")], 11, 1),
    Case("CorruptSamples", "59 minutes ago", [_corrupt("0x10 2x300")], 69, 1),
    Case("CorruptSamples", "an hour ago", [_corrupt("0x10 2x300")], 71, 0),
    Case("CorruptSamples", "quiet", [_corrupt("2x300")], 15, 0),
    Case("CorruptSamples", "two reasons", [_corrupt("0x10 2x300"), _corrupt("0x10 1x300", "crc")], 15, 2),
]
SURVIVAL_CASES = [
    Case("CheckpointTooOld", "above the limit", [f"{SAVED} {ago(7210)}", TRAINING], 20, 1),
    Case("CheckpointTooOld", "below the limit", [f"{SAVED} {ago(7190)}", TRAINING], 20, 0),
    Case("CheckpointTooOld", "at the limit", [f"{SAVED} {ago(7200)}", TRAINING], 20, 0),
    Case("CheckpointTooOld", "for five minutes", [f"{SAVED} 0x300", TRAINING], 126, 1),
    Case("CheckpointTooOld", "not yet for five minutes", [f"{SAVED} 0x300", TRAINING], 125, 0),
    Case("CheckpointTooOld", "not training", [f"{SAVED} 0x300"], 130, 0),
    Case("ExporterDown", "for two minutes", [_up(_turns(1, 0))], 23, 1),
    Case("ExporterDown", "not yet for two minutes", [_up(_turns(1, 0))], 22, 0),
    Case("ExporterDown", "quiet", [_up("1x300")], 14, 0),
    Case("ExporterDown", "target withdrawn", [_up("1x10 _x300")], 14, 0),
    Case("ExporterDown", "not ours", [_up("0x300", "node")], 14, 0),
    Case("RunVanished", "quiet", _info("1x300"), 28, 0),
    Case("RunVanished", "Prometheus still sees it", _info(GONE_AT_20), 24, 0),
    Case("RunVanished", "just gone", _info(GONE_AT_20), 26, 1),
    Case("RunVanished", "for ten minutes", _info(GONE_AT_20), 34, 1),
    Case("RunVanished", "longer ago", _info(GONE_AT_20), 36, 0),
    Case("RunVanished", "finished", _info(GONE_AT_20, finished="0x19 1 _x300", stopped="0x20 _x300"), 34, 0),
    Case("RunVanished", "stopped", _info(GONE_AT_20, finished="0x20 _x300", stopped="0x19 1 _x300"), 34, 0),
    Case("RunVanished", "had finished before", _info(GONE_AT_20, finished="1x2 0x17 _x300"), 28, 1),
    Case("RestartLoop", "three times", [_restarts("0x5 1x24 2x24 3x300")], 60, 1),
    Case("RestartLoop", "twice", [_restarts("1x5 2x5 3x300")], 40, 0),
    Case("RestartLoop", "three times for two reasons", [_restarts("0x5 2x300"), _restarts("0x5 1x300", "hung")], 40, 1),
    Case("RestartLoop", "twice in an hour, once before", [_restarts("0x5 1x29 2x39 3x300")], 76, 0),
    Case("RestartLoop", "preempted often", [_restarts("0+1x300", "preempted")], 40, 0),
    Case("DiskFilling", "quiet", _disk("runs", "500x300"), 70, 0),
    Case("DiskFilling", "half empty and steady", _disk("runs", "200x300"), 70, 0),
    Case("DiskFilling", "nearly full", _disk("scratch", "29x300"), 70, 1),
    Case("DiskFilling", "not nearly full", _disk("scratch", "31x300"), 70, 0),
    Case("DiskFilling", "at the limit", _disk("scratch", "30x300"), 70, 0),
    Case("DiskFilling", "full in 3.8 hours", _disk("runs", "359-1.2x300"), 70, 1),
    Case("DiskFilling", "full in 4.1 hours", _disk("runs", "376-1.2x300"), 70, 0),
    Case("DiskFilling", "falls, from 28 percent", _disk("runs", "425-2x300"), 70, 1),
    Case("DiskFilling", "falls, from 31 percent", _disk("runs", "450-2x300"), 70, 0),
    Case("DiskFilling", "for five minutes", _disk("runs", _turns(500, 20)), 26, 1),
    Case("DiskFilling", "not yet for five minutes", _disk("runs", _turns(500, 20)), 25, 0),
    Case("DiskFilling", "falls for 38 minutes", _disk("runs", "290x120 288-2x300"), 158, 1),
    Case("DiskFilling", "falls for 28 minutes", _disk("runs", "290x120 288-2x300"), 148, 0),
]
GPU_CASES = [
    Case("GPUIdle", "above the limit", [_gpu("gpu_utilization_ratio", "0.11x300"), TRAINING], 20, 0),
    Case("GPUIdle", "below the limit", [_gpu("gpu_utilization_ratio", "0.09x300"), TRAINING], 20, 1),
    Case("GPUIdle", "at the limit", [_gpu("gpu_utilization_ratio", "0.1x300"), TRAINING], 20, 0),
    Case("GPUIdle", "for ten minutes", [_gpu("gpu_utilization_ratio", _turns(0.9, 0.02)), TRAINING], 31, 1),
    Case("GPUIdle", "not yet for ten minutes", [_gpu("gpu_utilization_ratio", _turns(0.9, 0.02)), TRAINING], 30, 0),
    Case("GPUIdle", "not training", [IDLE], 12, 0),
    Case("BusyButStuck", "for 310 seconds", [BUSY, *_ranks(ago(310)), TRAINING], 28, 1),
    Case("BusyButStuck", "for 290 seconds", [BUSY, *_ranks(ago(290)), TRAINING], 28, 0),
    Case("BusyButStuck", "for 300 seconds", [BUSY, *_ranks(ago(300)), TRAINING], 28, 0),
    Case("BusyButStuck", "for a minute", [BUSY, *_ranks(AT_20), TRAINING], 27, 1),
    Case("BusyButStuck", "not yet for a minute", [BUSY, *_ranks(AT_20), TRAINING], 26, 0),
    Case("BusyButStuck", "91 %", [_gpu("gpu_utilization_ratio", "0.91x300"), *_ranks(AT_20), TRAINING], 28, 1),
    Case("BusyButStuck", "89 %", [_gpu("gpu_utilization_ratio", "0.89x300"), *_ranks(AT_20), TRAINING], 28, 0),
    Case("BusyButStuck", "90 %", [_gpu("gpu_utilization_ratio", "0.9x300"), *_ranks(AT_20), TRAINING], 28, 0),
    Case("BusyButStuck", "one GPU is idle",
         [BUSY, _gpu("gpu_utilization_ratio", "0x300", 1), *_ranks(AT_20), TRAINING], 28, 0),
    Case("BusyButStuck", "finished", [BUSY, *_ranks(AT_20), _state("finished")], 28, 0),
    Case("ECCUncorrectable", "at once", [_gpu("gpu_ecc_errors_total", "0x5 1x300", type="uncorrected")], 6, 1),
    Case("ECCUncorrectable", "58 minutes ago", [_gpu("gpu_ecc_errors_total", "0x5 1x300", type="uncorrected")], 64, 1),
    Case("ECCUncorrectable", "an hour ago", [_gpu("gpu_ecc_errors_total", "0x5 1x300", type="uncorrected")], 66, 0),
    Case("ECCUncorrectable", "quiet", [_gpu("gpu_ecc_errors_total", "4x300", type="uncorrected")], 10, 0),
    Case("ECCUncorrectable", "corrected", [_gpu("gpu_ecc_errors_total", "0+1x300", type="corrected")], 10, 0),
    Case("Xid", "the first", [_gpu("gpu_xid_events_total", "_x5 1x300", xid="79")], 6, 1),
    Case("Xid", "another", [_gpu("gpu_xid_events_total", "3x20 4x300", xid="79")], 21, 1),
    Case("Xid", "quiet", [_gpu("gpu_xid_events_total", "3x300", xid="79")], 40, 0),
    Case("Xid", "14 minutes ago", [_gpu("gpu_xid_events_total", "_x5 1x300", xid="79")], 19, 1),
    Case("Xid", "a quarter of an hour ago", [_gpu("gpu_xid_events_total", "_x5 1x300", xid="79")], 22, 0),
    Case("Throttled", "above the limit", [_gpu("gpu_throttle_active", "0.55x300", reason="thermal_hardware")], 16, 1),
    Case("Throttled", "below the limit", [_gpu("gpu_throttle_active", "0.45x300", reason="thermal_hardware")], 16, 0),
    Case("Throttled", "at the limit", [_gpu("gpu_throttle_active", "0.5x300", reason="thermal_hardware")], 16, 0),
    Case("Throttled", "for five minutes", [_gpu("gpu_throttle_active", _turns(0, 1), reason="hw_slowdown")], 31, 1),
    Case("Throttled", "not yet for five minutes",
         [_gpu("gpu_throttle_active", _turns(0, 1), reason="hw_slowdown")], 30, 0),
    Case("Throttled", "by its power cap", [_gpu("gpu_throttle_active", "1x300", reason="power_cap")], 16, 0),
]  # fmt: skip
CASES = [*TRAINING_CASES, *SURVIVAL_CASES, *GPU_CASES]

_CLIPS = [
    f'clips_total{{run="r",instance="r/{node}"}} 0+{rate}x20 {22 * rate}+{2 * rate}x300'
    for node, rate in enumerate((60, 30))
]
_STEPS = [
    f'step_duration_seconds_{part}{{run="r",instance="r/{node}"}} 0+{rate}x300'
    for node in (0, 1)
    for part, rate in (("sum", 30 + 30 * node), ("count", 60 - 40 * node))
]
VALUES = [
    # between two scrapes, where all versions of Prometheus take the same samples
    Value("motionmae:clips:rate5m", "a faster run", _CLIPS, 23 * 60 + 30, {'{run="r"}': 1.5 * (60 + 3 * 120) / 240}),
    Value("motionmae:clips:rate5m", "fast for five minutes", _CLIPS, 26 * 60 + 30, {'{run="r"}': 3}),
    Value("motionmae:step_seconds:mean5m", "of two nodes", _STEPS, 20 * 60, {'{run="r"}': 90 / 80}),
    Value(
        "motionmae:phase:ratio", "of two ranks",
        [*_phases(15), *(text.replace('rank="0"', 'rank="1"') for text in _phases(30))], 20 * 60,
        {'{run="r",phase="data_wait"}': 45 / 120, '{run="r",phase="forward"}': 75 / 120},
    ),
    Value(
        "motionmae:phase:ratio", "waits for two minutes and a half",
        ['phase_seconds_total{run="r",rank="0",phase="data_wait"} 1000x20 1090+90x300',
         'phase_seconds_total{run="r",rank="0",phase="forward"} 1000+60x20 2200x300'], 22 * 60 + 30,
        {'{run="r",phase="data_wait"}': 180 / 300, '{run="r",phase="forward"}': 120 / 300},
    ),
    Value("motionmae:silence_seconds", "of the last rank", _ranks(ago(100), ago(40)), 20 * 60, {'{run="r"}': 40}),
    Value("motionmae:training", "now", [_state("starting", "0x300"), TRAINING], 60, {'{run="r"}': 1}),
    Value("motionmae:training", "no more", [_state("finished"), _state("training", "0x300")], 60, {}),
    Value(
        "NonFiniteLoss", "of two kinds", [_nonfinite("0x10 3x300"), _nonfinite("0x10 1x300", "gradient")],
        15 * 60 + 30, {'{run="r"}': round(4 * 14.5 / 14, 3)},  # extrapolated by half a minute
    ),
    Value(
        "CorruptSamples", "of two ranks", [_corrupt("0x10 3x300"), _corrupt("0x10 1x300", rank=1)],
        15 * 60 + 30, {'{run="r",reason="decode"}': round(4 * 15.5 / 15, 3)},
    ),
    Value("Stalled", "silence", [*_ranks(ago(400)), TRAINING], 20 * 60, {'{run="r"}': 400}),
    Value(
        "Stalled", "start on another node", [_state("starting"), _age("910x300"), _age("950x300", node=1)], 60,
        {'{run="r"}': 950},
    ),
    Value(
        "RankBehind", "names the rank", _ranks("0+60x300", ago(200)), 60,
        {'{run="r",instance="r/1",rank="1"}': 200},
    ),
    Value(
        "Xid", "counts the new ones", [_gpu("gpu_xid_events_total", "_x5 1x300", xid="79")], 600,
        {'{run="r",instance="r/0",gpu="0",UUID="u",xid="79"}': 1},
    ),
    Value("CheckpointTooOld", "age", [f"{SAVED} {ago(8000)}", TRAINING], 60, {'{run="r"}': 8000}),
    Value("RunVanished", "names the run", _info(GONE_AT_20), 28 * 60, {'{run="r"}': 1}),
]  # fmt: skip
