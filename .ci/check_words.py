"""Reject retired names: each thing has one name in code, file names, configs, docs and messages (docs/glossary.md).

Usage: python .ci/check_words.py    # exit status 1 and one line per place
"""

import re
import subprocess
import sys
from pathlib import Path

RETIRED = """
incarnations? -> attempt
\\bLife\\b -> attempt
\\b(life|lives) of (a|the|this) (run|job) -> attempt
\\b(former|older|next|new) life\\b -> attempt
\\bClaim\\b|claim_folder|living_owner -> Lease, acquire_lease, current_holder
[Ss]uperseded\\b|SUPERSEDED -> LeaseLost
refuse_what_cannot_go_on -> validate_before_start
add_boards|training[./]boards -> loggers
\\bDrawing\\b|open_drawing|announce_drawn -> ReconstructionCallback
\\bSaver\\b -> AsyncCheckpointer
HostMemory|_share_out|_put_together|_Together -> PinnedStagingBuffer, assign_writers, gather_shards
checkpoint_survey -> checkpoint_inspect
\\bsettle\\b -> resolve_checkpoint, write_or_check_plan
training[./]upload -> DevicePrefetcher
went_back|WENT_BACK|\\bgo_back\\b -> rollback
BadStep -> SkippedStep
collected_in_lockstep|in lockstep -> synchronized_gc
PhaseClock|\\bStartUp\\b -> StepTimer, StartupTimer
source_version -> git_revision
\\baddress_of\\b|ipv4_of_interface -> psutil.net_if_addrs
meeting_place|\\bread_place\\b|_slurm_place -> create_store, rank_environment
first_then_others|on_first_rank|\\bis_first\\b -> rank_zero_first, run_on_rank_zero, is_rank_zero
\\bannounce_\\w+|\\bintroduction\\( -> log_*
exit_of\\b|\\bOutcome\\b -> classify_error, EndReason
[Ll]ook_?[Aa]head -> prefetch, ShardPrefetcher
\\bWanted\\b|ClipSource|EpochOrder|ClipMemory -> ClipRequest, ClipDecoder, EpochSampler, SharedBufferPool
data[./]transfer\\b -> download
stand-ins? -> replacement
\\bwindow_shards|corrupt_budget|picture_steps|mix_switch -> motionmae/config/data.py, training.py, downstream.py
launch\\.ranks_per_node|ranks-per-node|cpus.per.rank|timeout_minutes -> motionmae/config/launch.py
cube_init|model\\.position|data\\.repeats|data\\.erase -> motionmae/config/method.py, data.py
engine\\.zero\\b|optim\\.batch\\b|engine\\.micro_batch\\b -> motionmae/config/training.py
until_unread|exit_quietly_on_broken_pipe -> motionmae.commands.app.run
fruitless|renumber_step|\\bconclude\\w*\\( -> failures_without_progress, burn_step_ids, decide
\\bforeign\\( -> belongs_to_other_run
\\bENDINGS\\b|silence_after -> EndReason, idle category
read_story|\\b[Ss]tory\\b|\\b[Ss]tories\\b -> RunHistory
[Ll]edger|\\bthe books\\b -> GoodputTracker, totals
RankSink|\\bmonitored\\( -> RankMetrics
monitoring[./](catalogue|sink|snapshots|session|work|endings)\\b -> docs/reference/architecture.md
Neighbours\\b|mean_prediction\\b -> KnnResult, mean_baseline
evaluation[./](recognition|identity|pretrained|pictures)\\b -> multiview_test, cache_key, load_model, reconstructions
\\b[Ll]isting\\b|\\b[Tt]ally\\b|passed_over|passed over -> Split, Counts, skipped
refuse_idle -> refuse_unused
"""
EXEMPT = {".ci/check_words.py", "LICENSE"}


def main() -> int:
    """Print every place that uses a retired name; 1 if there is one."""
    rules = [(re.compile(old), new) for old, new in (line.split(" -> ") for line in RETIRED.strip().split("\n"))]
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    found = 0
    for name in filter(None, tracked):
        path = Path(name)
        if name in EXEMPT or path.suffix == ".png" or not path.is_file():
            continue
        for number, line in enumerate([name, *path.read_text().split("\n")]):
            for old, new in rules:
                if match := old.search(line):
                    print(f"{name}:{number}: {match[0]!r} is retired, use: {new}")
                    found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
