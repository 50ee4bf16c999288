"""The recipes of docs/data/data_sets.md make the files that importers find. The numbers of frames are arithmetic."""

import re
import subprocess
import sys
from pathlib import Path

from data_tools.annotations import READERS, read_split
from tests.data_tools.annotations.files import facts, write
from tests.data_tools.videos import draw_frames, ffmpeg_count, write_video

PAGE = (Path(__file__).resolve().parents[4] / "docs/data/data_sets.md").read_text()


def recipe(language, word):
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def test_every_data_set_is_in_the_table():
    table = PAGE.partition("## Public data sets")[2].partition("\nVideos are found")[0]
    assert [name for name in READERS if f"`{name}" not in table] == []


def test_frames_of_jester(tmp_path):
    for video, count in {"7": 13, "148092": 5}.items():
        folder = tmp_path / "20bn-jester-v1" / video
        folder.mkdir(parents=True)
        source = write_video(tmp_path / f"{video}.avi", draw_frames(count, 70, 100), "mjpeg", "yuvj420p", rate=12)
        command = ["ffmpeg", "-v", "error", "-i", source, "-vf", "crop=69:99", folder / "%05d.jpg"]  # odd, as many are
        subprocess.run(command, check=True)
    subprocess.run(["bash", "-ec", recipe("bash", "20bn-jester-v1")], cwd=tmp_path, check=True)
    write(tmp_path / "jester-v1-labels.csv", "Swiping Left\nDoing other things\n")
    write(tmp_path / "jester-v1-train.csv", "7;Doing other things\n148092;Swiping Left\n")
    split = read_split("jester", tmp_path / "jester", tmp_path, "train")
    assert [label for _, _, label, _ in facts(split)] == [1, 0]
    assert [ffmpeg_count(video.path) for video in split.videos] == [13, 5]


def test_clips_of_hacs_and_epic(tmp_path):
    write_video(tmp_path / "HACS" / "Ice_skating" / "v_a2X2hz1G6i8.mp4", draw_frames(75), rate=25)
    rows = "Ice skating,a2X2hz1G6i8,training,0.4,2.4,1\nIce skating,a2X2hz1G6i8,training,1.0,3.0,-1\n"
    header = "classname,youtube_id,subset,start,end,label\n"
    write(tmp_path / "HACS_v1.1.1" / "HACS_clips_v1.1.1.csv", header + rows)
    write_video(tmp_path / "EPIC-KITCHENS" / "P01" / "videos" / "P01_102.MP4", draw_frames(75), rate=25)
    lists = tmp_path / "epic-kitchens-100-annotations"
    header = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    write(lists / "EPIC_100_train.csv", f"{header}P01_102_0,P01,P01_102,00:00:00.40,00:00:02.00,0,0\n")
    write(lists / "EPIC_100_validation.csv", f"{header}P01_102_1,P01,P01_102,00:00:01.00,00:00:01.20,0,0\n")
    write(lists / "EPIC_100_verb_classes.csv", "id,key\n0,take\n")
    for word in ("HACS_clips", "EPIC_100"):
        subprocess.run([sys.executable, "-c", recipe("python", word)], cwd=tmp_path, check=True)
    hacs = read_split("hacs_clips", tmp_path / "hacs_clips", tmp_path / "HACS_v1.1.1", "train")
    assert [ffmpeg_count(video.path) for video in hacs.videos] == [2 * 25]
    for split, seconds in (("train", 1.6), ("val", 0.2)):
        epic = read_split("epic_verbs", tmp_path / "epic_clips", lists, split)
        assert [ffmpeg_count(video.path) for video in epic.videos] == [seconds * 25]
