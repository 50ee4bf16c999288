"""Small made trees in the official layouts. The numbers of the classes are those that the official files state."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.annotations import read_split
from motionmae.errors import UserError
from tests.data_tools.annotations.files import facts, refusal, touch, write
from tests.mutations import refused


@pytest.fixture
def moments(tmp_path):
    root = touch(
        tmp_path / "m", "training/adult+female+singing/yt-a_1.mp4", "validation/zip/getty-b_2.mp4", "license.txt"
    )
    write(root / "moments_categories.txt", "zip,1\nadult+female+singing,0\n")
    write(
        root / "trainingSet.csv",
        "adult+female+singing/yt-a_1.mp4,adult+female+singing,3,1\nzip/gone_4.mp4,zip,5,0\n",
    )
    write(root / "validationSet.csv", "zip/getty-b_2.mp4,zip,2,0\n")
    return root


def test_moments_in_time(moments):
    train = read_split("moments", moments, None, "train")
    assert facts(train) == [
        ("training/adult+female+singing/yt-a_1.mp4", True, 0, "adult+female+singing"),
        ("training/zip/gone_4.mp4", False, 1, "zip"),
    ]
    assert train.class_names == ("adult+female+singing", "zip")
    assert facts(read_split("moments", moments, None, "val")) == [("validation/zip/getty-b_2.mp4", True, 1, "zip")]
    below = read_split("moments", moments / "training", moments, "training")
    assert facts(below)[0] == ("adult+female+singing/yt-a_1.mp4", True, 0, "adult+female+singing")
    assert [v.identity for v in below.videos] == [v.identity for v in train.videos]
    assert "choose training or validation" in refusal("moments", moments, None, "test")
    write(moments / "trainingSet.csv", "zip/a.mp4,zap,1,0\n")
    assert "names no class of moments_categories.txt" in refusal("moments", moments, None, "train")


def test_diving48(tmp_path):
    root = touch(tmp_path, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/2x00lRzlTVQ_00000.mp4")
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Back", "25som", "NoTwis", "PIKE"]]
    write(root / "Diving48_vocab.json", json.dumps(vocabulary))
    dive = {"vid_name": "-mmq0PT-u8k_00155", "label": 1, "start_frame": 0, "end_frame": 48}
    write(root / "Diving48_V2_train.json", json.dumps([dive]))
    write(root / "Diving48_train.json", json.dumps([dive | {"label": 0}]))
    write(root / "Diving48_test.json", json.dumps([dive | {"vid_name": "2x00lRzlTVQ_00000", "label": 0}]))
    train = read_split("diving48", root, None, "train")  # the corrected labels
    assert facts(train) == [("rgb/-mmq0PT-u8k_00155.mp4", True, 1, "Back 25som NoTwis PIKE")]
    assert facts(read_split("diving48", root, None, "val"))[0][:3] == ("rgb/2x00lRzlTVQ_00000.mp4", True, 0)
    write(root / "Diving48_V2_train.json", json.dumps([dive | {"label": 2}]))
    assert "Diving48_vocab.json has no class 2" in refusal("diving48", root, None, "train")


@pytest.mark.parametrize(("dataset", "title"), [("jester", "jester"), ("ssv1", "something-something")])
def test_jester_and_something_something_v1(tmp_path, dataset, title):
    videos = touch(tmp_path / "videos", "34870.mp4", "9223.webm")
    lists = tmp_path / "lists"
    write(lists / f"{title}-v1-labels.csv", "Swiping Left\nDoing other things\nDrumming Fingers\n")
    write(lists / f"{title}-v1-train.csv", "34870;Drumming Fingers\n100;Swiping Left\n")
    write(lists / f"{title}-v1-validation.csv", "9223;Doing other things\n")
    write(lists / f"{title}-v1-test.csv", "9223\n")
    train = read_split(dataset, videos, lists, "train")
    assert facts(train) == [("34870.mp4", True, 2, "Drumming Fingers"), ("100.mp4", False, 0, "Swiping Left")]
    assert facts(read_split(dataset, videos, lists, "val")) == [("9223.webm", True, 1, "Doing other things")]
    assert facts(read_split(dataset, videos, lists, "test")) == [("9223.webm", True, -1, "")]
    write(lists / f"{title}-v1-train.csv", "34870;Drumming\n")
    assert "has no class 'Drumming'" in refusal(dataset, videos, lists, "train")


def test_activitynet_and_hacs_segments(tmp_path):
    videos = touch(tmp_path / "v", "train_val/v_QOlSCBRmfWY.mp4", "train_val/v_--0edUL8zmA.mkv", "Dodgeball/v_test.mp4")
    segments = [([0.5, 10.5], "Dodgeball"), ([20, 25.5], "Archery"), ([30, 35], "Archery")]
    database = {
        "QOlSCBRmfWY": {"subset": "training", "annotations": [{"segment": s, "label": n} for s, n in segments]},
        "--0edUL8zmA": {"subset": "training", "annotations": [{"segment": [5.4, 11.6], "label": "Dodgeball"}]},
        "test": {"subset": "testing", "annotations": [], "duration": "92.166667", "url": "https://"},
    }
    content = {"version": "VERSION 1.3", "taxonomy": [], "database": database}
    file = write(tmp_path / "activity_net.v1-3.min.json", json.dumps(content))
    train = read_split("activitynet", videos, file, "train")
    assert facts(train) == [  # 10.5 seconds of archery, 10 of dodgeball
        ("train_val/v_QOlSCBRmfWY.mp4", True, 0, "Archery"),
        ("train_val/v_--0edUL8zmA.mkv", True, 1, "Dodgeball"),
    ]
    assert train.notes == ("videos with several classes count as the one with the longest annotated time: 1",)
    assert facts(read_split("activitynet", videos, tmp_path, "test")) == [("Dodgeball/v_test.mp4", True, -1, "")]
    file.rename(tmp_path / "HACS_segments_v1.1.1.json")
    assert facts(read_split("activitynet", videos, tmp_path, "train")) == facts(train)


def test_hacs_clips(tmp_path):
    videos = touch(
        tmp_path / "v", "Archery/a2X2hz1G6i8_15.5_17.5.mp4", "v_NUdji_CqvcY_77.5_79.5.mp4", "x/0O_qMHxBfXg.mp4"
    )
    rows = (
        "classname,youtube_id,subset,start,end,label\nArchery,a2X2hz1G6i8,training,15.5,17.5,1\n"
        "Archery,NUdji_CqvcY,training,77.5,79.5,-1\nZumba,NUdji_CqvcY,training,77.5,79.5,1\n"
        "Archery,a2X2hz1G6i8,training,20.0,22.0,1\nArchery,0O_qMHxBfXg,validation,24.5,26.5,1\n"
    )
    file = write(tmp_path / "HACS_clips_v1.1.1.csv", rows)
    assert facts(read_split("hacs_clips", videos, file, "train")) == [
        ("Archery/a2X2hz1G6i8_15.5_17.5.mp4", True, 0, "Archery"),
        ("v_NUdji_CqvcY_77.5_79.5.mp4", True, 1, "Zumba"),
        ("Archery/a2X2hz1G6i8_20.0_22.0.mp4", False, 0, "Archery"),
    ]
    assert "use the data set 'hacs_clips'" in refusal("folder", videos, file, None)


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        ("label,youtube_id,time_start,time_end,split\narchery,a,0,10,train\n", "'k400' (or 'k600', 'k700')"),
        ('{"a": {"annotations": {"label": "x"}, "subset": "train", "url": "u"}}', "'k400' or 'activitynet'"),
        ("classname,youtube_id,subset,start,end,label\nArchery,a,training,15.5,17.5,1\n", "'hacs_clips'"),
        ("narration_id,video_id,verb_class,noun_class\nP01_01_0,P01_01,0,1\n", "'epic_verbs' (or 'epic_nouns')"),
        ('[{"vid_name": "a", "label": 0, "start_frame": 0, "end_frame": 9}]', "'diving48'"),
        ('[{"id": "1", "label": "l", "template": "t", "placeholders": []}]', "'ssv2'"),
    ],
)
def test_an_official_list_given_as_one_of_a_folder_names_its_data_set(tmp_path, text, dataset):
    file = write(tmp_path / ("list.json" if text[0] in "[{" else "list.csv"), text)
    found = refusal("folder", touch(tmp_path / "v", "a.mp4"), file, None)
    assert f"use the data set {dataset} instead of 'folder'" in found


def test_epic_kitchens_100(tmp_path):
    videos = touch(tmp_path / "clips", "P01/P01_01_0.mp4", "P01/P01_01_1.mp4")
    lists = tmp_path / "lists"
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    )
    row = (
        "P01_01_0,P01,P01_01,00:00:01.100,00:00:00.54,00:00:02.23,27,111,take knife and plate,take,0,knife,1,"
        "\"['knife', 'plate']\",\"[1, 0]\"\n"
    )
    write(lists / "EPIC_100_train.csv", header + row)
    test_header = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp\n"
    write(lists / "EPIC_100_test_timestamps.csv", test_header + "P01_01_1,P01,P01_01,0,00:00:02.86,00:00:03.87\n")
    write(lists / "EPIC_100_verb_classes.csv", "id,key,instances,category\n0,take,\"['take', 'get']\",retrieve\n")
    write(
        lists / "EPIC_100_noun_classes_v2.csv", "id,key,instances,category\n1,knife,['knife'],cutlery\n0,plate,[],x\n"
    )
    assert facts(read_split("epic_verbs", videos, lists, "train")) == [("P01/P01_01_0.mp4", True, 0, "take")]
    nouns = read_split("epic_nouns", videos, lists, "train")
    assert facts(nouns) == [("P01/P01_01_0.mp4", True, 1, "knife")]
    assert nouns.class_names == ("plate", "knife")
    assert facts(read_split("epic_verbs", videos, lists, "test")) == [("P01/P01_01_1.mp4", True, -1, "")]
    assert "use the data set 'epic_verbs'" in refusal("folder", videos, lists / "EPIC_100_train.csv", None)


def test_ucf101_of_kaggle(tmp_path):
    root = touch(tmp_path, "train/Swing/v_Swing_g05_c02.avi", "val/Archery/v_Archery_g10_c01.avi", "test/Swing/t.avi")
    for split, row in {
        "train": "v_Swing_g05_c02,/train/Swing/v_Swing_g05_c02.avi,Swing",
        "val": "v_Archery_g10_c01,/val/Archery/v_Archery_g10_c01.avi,Archery",
        "test": "t,/test/Swing/t.avi,Swing",
    }.items():
        write(root / f"{split}.csv", f"clip_name,clip_path,label\n{row}\n")
    train = read_split("folder", root, None, "train")
    assert [video.path for video in train.videos] == [root / "train/Swing/v_Swing_g05_c02.avi"]
    assert len(read_split("folder", root, None, None).videos) == 3


DAMAGED = {
    "moments": {"trainingSet.csv": "zip/a.mp4,zip,3,1\n", "moments_categories.txt": "zip,0\nrun,1\n"},
    "diving48": {"Diving48_V2_train.json": '[{"vid_name": "7", "label": 0}]', "Diving48_vocab.json": '[["Back", "x"]]'},
    "jester": {"jester-v1-train.csv": "7;A b\n8;C\n", "jester-v1-labels.csv": "A b\nC\n"},
    "activitynet": {
        "activity_net.v1-3.min.json": '{"database": {"7": {"subset": "training", "annotations": [{"segment": [0, 1.5], '
        '"label": "x"}]}}}'
    },
    "hacs_clips": {"HACS_clips_v1.1.1.csv": "classname,youtube_id,subset,start,end,label\nA,7,training,1.5,3.5,1\n"},
    "epic_verbs": {
        "EPIC_100_train.csv": "narration_id,verb_class\nP01_01_0,0\n",
        "EPIC_100_verb_classes.csv": "id,key\n0,take\n",
    },
}


@pytest.mark.parametrize(("dataset", "name"), [(one, name) for one, files in DAMAGED.items() for name in files])
def test_damaged_files_are_answered_in_a_sentence(tmp_path, dataset, name):
    videos = touch(tmp_path / "v", "7.mp4", "training/zip/a.mp4", "P01_01_0.mp4", "7_1.5_3.5.mp4")
    for other, text in DAMAGED[dataset].items():
        write(tmp_path / other, text)
    assert read_split(dataset, videos, tmp_path, "train").videos[0].path
    raw = DAMAGED[dataset][name].encode()
    pieces = st.sampled_from([b"", b"\0", b"\xff", b"-1", b"9" * 30, b'"', b"\n", b",", b"[]", b"null", b"1e999"])

    @settings(derandomize=True, max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(changes=st.dictionaries(st.integers(0, len(raw) - 1), pieces | st.binary(max_size=3), max_size=4))
    def check(changes):
        parts = [changes.get(place, raw[place : place + 1]) for place in range(len(raw))]
        (tmp_path / name).write_bytes(b"".join(parts))
        with refused(UserError):
            read_split(dataset, videos, tmp_path, "train")

    check()
