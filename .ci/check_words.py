"""Reject retired names: each thing has one name in code, file names, configs, docs and messages (docs/glossary.md).

Usage: python .ci/check_words.py    # exit status 1 and one line per place
"""

import re
import subprocess
import sys
from pathlib import Path

RETIRED = {
    r"incarnations?": "attempt",
    r"\bLife\b|\blives of (a|the) (run|job)|\b(life|lives) of (a|the|this) (run|job)|\b(former|older|next|new) life\b": "attempt",
    r"\bClaim\b|claim_folder|living_owner": "Lease, acquire_lease, current_holder",
    r"Superseded|SUPERSEDED": "LeaseLost",
    r"refuse_what_cannot_go_on": "validate_before_start",
    r"add_boards|training[./]boards": "loggers",
    r"\bDrawing\b|open_drawing|announce_drawn": "ReconstructionCallback",
    r"\bSaver\b": "AsyncCheckpointer",
    r"HostMemory|_share_out|_put_together|_Together": "PinnedStagingBuffer, assign_writers, gather_shards, collective_io",
    r"checkpoint_survey|\bsurvey\(": "checkpoint_inspect",
    r"\bsettle\b": "resolve_checkpoint, write_or_check_plan",
    r"training[./]upload": "DevicePrefetcher",
    r"went_back|WENT_BACK|\bgo_back\b": "rollback",
    r"BadStep": "SkippedStep",
    r"collected_in_lockstep|in lockstep": "synchronized_gc",
    r"PhaseClock|\bStartUp\b": "StepTimer, StartupTimer",
    r"source_version": "git_revision",
    r"\baddress_of\b": "ipv4_of_interface",
    r"meeting_place|\bread_place\b|_slurm_place": "create_store, rank_environment",
    r"first_then_others|on_first_rank|\bis_first\b": "rank_zero_first, run_on_rank_zero, is_rank_zero",
    r"\bannounce_\w+|\bintroduction\(": "log_*",
    r"exit_of\b|\bOutcome\b": "classify_error, EndReason",
    r"[Ll]ook_?[Aa]head": "prefetch, ShardPrefetcher",
    r"\bWanted\b|ClipSource|EpochOrder|ClipMemory": "ClipRequest, ClipDecoder, EpochSampler, SharedBufferPool",
    r"data[./]transfer\b": "download",
    r"stand-in": "replacement",
    r"\bwindow_shards|corrupt_budget|picture_steps|mix_switch|ranks_per_node|cpus_per_rank|timeout_minutes": "see motionmae/config",
    r"cube_init|model\.position|data\.repeats|data\.erase|engine\.zero\b|optim\.batch\b|engine\.micro_batch\b": "see motionmae/config",
    r"until_unread": "exit_quietly_on_broken_pipe",
    r"fruitless|renumber_step|\bconclude\w*\(": "failures_without_progress, burn_step_ids, decide_requeue",
    r"\bforeign\(": "belongs_to_other_run",
    r"\bENDINGS\b|silence_after": "EndReason, idle category",
    r"report[./]story|read_story|\bStory\b|stories\b": "RunHistory",
    r"\bLedger\b|ledger|\bthe books\b": "GoodputTracker, totals",
    r"RankSink|\bmonitored\(": "RankMetrics, start_exporter",
    r"monitoring[./]catalogue|monitoring[./](sink|snapshots|session|work|endings)\b": "see docs/architecture.md",
    r"Neighbours\b|mean_prediction\b|evaluation[./](recognition|identity|pretrained|pictures)\b": "KnnResult, mean_baseline, cache_key",
    r"\b[Ll]isting\b|\bTally\b|\btally\b|passed_over|passed over": "Split, Counts, skipped",
    r"refuse_idle": "refuse_unused",
}
BINARY = {".png", ".jpg", ".mp4"}
EXEMPT = {".ci/check_words.py", "LICENSE"}


def main() -> int:
    """Print every place that uses a retired name; 1 if there is one."""
    pattern = re.compile("|".join(f"(?P<w{number}>{regex})" for number, regex in enumerate(RETIRED)))
    advice = list(RETIRED.values())
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    found = 0
    for name in filter(None, listed):
        path = Path(name)
        if name in EXEMPT or path.suffix in BINARY or not path.is_file():
            continue
        for number, line in enumerate([name, *path.read_text().split("\n")]):
            for match in pattern.finditer(line):
                word = advice[int((match.lastgroup or "w0")[1:])]
                print(f"{name}:{number}: {match[0]!r} is retired, use: {word}")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
