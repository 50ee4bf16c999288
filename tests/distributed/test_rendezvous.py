"""Ranks and addresses from the variables of launchers. The values were printed by Slurm 22.05 and by Open MPI."""

import pytest

from motionmae.distributed.rendezvous import (
    host_names,
    master_address,
    master_port,
    node_index,
    nodes_of_ranks,
    preflight_port,
    rank_environment,
    refuse_heterogeneous,
    tasks_per_node,
    training_port,
)
from motionmae.errors import UserError

STEP = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "jean-zay-ia[810-811]", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
}  # fmt: skip
INTERACTIVE = {  # the shell of `salloc -N1 -n2` with LaunchParameters=use_interactive_step
    **STEP, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_TASKS_PER_NODE": "2",
}  # fmt: skip
ADDRESS, PORT = {"MASTER_ADDR": "10.1.0.7"}, {"MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "address", "port"),
    [
        (STEP, "jean-zay-ia810", "25136"),
        ({**STEP, **ADDRESS}, "10.1.0.7", "25136"),
        ({**STEP, **PORT}, "jean-zay-ia810", "29500"),
        ({**STEP, **ADDRESS, **PORT}, "10.1.0.7", "29500"),
        ({**STEP, "MASTER_ADDR": "", "MASTER_PORT": " "}, "jean-zay-ia810", "25136"),
        ({**STEP, "MOTIONMAE_MASTER_SUFFIX": "-ib0"}, "jean-zay-ia810-ib0", "25136"),
        ({**STEP, **ADDRESS, "MOTIONMAE_MASTER_SUFFIX": "-ib0"}, "10.1.0.7", "25136"),
    ],
)
def test_a_given_address_and_port_win_over_slurm_s(environment: dict[str, str], address: str, port: str):
    found = rank_environment(environment)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == (address, port)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("0", "8")


@pytest.mark.parametrize(
    "environment",
    [
        INTERACTIVE,
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"},
        {"SLURM_JOB_ID": "1", "SLURM_NPROCS": "4"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"},
        {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "4(x2)"},
        {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "4", "SLURM_JOB_CPUS_PER_NODE": "48"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_process_that_srun_did_not_start_is_refused(environment: dict[str, str]):
    with pytest.raises(UserError, match="put `srun` before the command"):
        rank_environment(environment)


@pytest.mark.parametrize(
    ("variable", "launcher"),
    [
        ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
        ("PMI_SIZE", "mpiexec"),
        ("FLUX_JOB_SIZE", "flux run"),
        ("MV2_COMM_WORLD_SIZE", "MVAPICH's mpirun"),
        ("JSM_NAMESPACE_SIZE", "jsrun"),
    ],
)
def test_processes_of_another_launcher_never_train_alone(variable: str, launcher: str):
    with pytest.raises(UserError, match=f"{launcher} started 8 processes .* start with torchrun or srun"):
        rank_environment({variable: "8"})
    with pytest.raises(UserError, match=launcher):  # as mpirun in an allocation starts them, one daemon a node
        rank_environment({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", variable: "8"})
    assert rank_environment({variable: "1"})["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "", "SLURM_STEP_NUM_TASKS": "", "OMPI_COMM_WORLD_SIZE": "", "RANK": "", "WORLD_SIZE": ""},
        {"LOCAL_RANK": "0"},
        # salloc --exclusive -N1: Slurm counts a task for each core where nobody asked for tasks
        {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "1"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "PMI_SIZE": "1"},  # srun --ntasks=1
        {**INTERACTIVE, "SLURM_NTASKS": "1", "SLURM_NPROCS": "1", "SLURM_TASKS_PER_NODE": "1",
         "SLURM_STEP_NUM_NODES": "1"},
    ],
)  # fmt: skip
def test_a_single_process_is_a_run_of_one_rank(environment: dict[str, str]):
    assert rank_environment(environment)["WORLD_SIZE"] == "1"


def test_srun_with_pmi_is_srun():
    assert rank_environment({**STEP, "PMI_SIZE": "8", "PMI_RANK": "3"})["WORLD_SIZE"] == "8"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**STEP, "SLURM_HET_SIZE": "2"}, "heterogeneous Slurm job of 2 components"),
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS=many is not a whole number"),
        ({**STEP, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a port"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"}, "but not SLURM_JOB_ID, SLURM_PROCID, SLURM_LOCALID"),
        ({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0", **ADDRESS, **PORT}, "RANK=4 must be less than"),
        ({"RANK": "x", "WORLD_SIZE": "4", "LOCAL_RANK": "0", **ADDRESS, **PORT}, "RANK=x is not a whole number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **ADDRESS, "MASTER_PORT": "0"},
            "MASTER_PORT=0 cannot be shared by 2 ranks",
        ),
    ],
)
def test_variables_that_make_no_sense_are_one_sentence(environment: dict[str, str], said: str):
    with pytest.raises(UserError, match=said):
        rank_environment(environment)


@pytest.mark.parametrize(
    ("text", "layout"),
    [("8(x4)", [8, 8, 8, 8]), ("4", [4]), ("2,1", [2, 1]), ("2(x2),1(x2)", [2, 2, 1, 1]), ("8,7(x3)", [8, 7, 7, 7])],
)
def test_the_list_of_tasks_per_node_is_read_in_full(text: str, layout: list[int]):
    right = [node for node, count in enumerate(layout) for _ in range(count)]
    assert tasks_per_node(text) == layout
    environment = {"SLURM_STEP_TASKS_PER_NODE": text}
    assert nodes_of_ranks(environment, len(right)) == right
    assert [node_index(environment, rank, len(right)) for rank in range(len(right))] == right
    assert tasks_per_node(f"{text},x") == []


def test_the_pre_flight_port_of_a_given_port_is_a_port():
    assert [preflight_port(port) for port in (20_000, 59_535, 65_535)] == [26_000, 65_535, 59_535]


def test_the_port_of_training_is_arithmetic():
    """20000 + (31 job + 7 restarts + step) mod 6000."""
    assert training_port(1, 2, 3) == 20_048
    assert training_port(1, 2) == 20_045
    assert training_port(200, 0) == 20_200  # 6200 mod 6000
    assert [preflight_port(port) for port in (59_535, 59_536)] == [65_535, 53_536]


def test_a_given_port_is_below_65536():
    assert master_port({"MASTER_PORT": "65535"}, 1) == 65_535
    assert master_port({"MASTER_PORT": "0"}, 1) == 1  # as a process that trained alone leaves it
    assert master_port({}, 1) == 1
    with pytest.raises(UserError, match="MASTER_PORT=65536 is not a port: choose one from 1024 to 65535"):
        master_port({"MASTER_PORT": "65536"}, 1)


def test_a_single_process_listens_to_itself_or_where_it_is_told():
    assert rank_environment({}) == {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    assert rank_environment({**ADDRESS, **PORT}) == {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **ADDRESS, **PORT,
    }  # fmt: skip


@pytest.mark.parametrize("given", [{"RANK": "0"}, {"WORLD_SIZE": "1"}])
def test_half_of_torchrun_is_refused(given: dict[str, str]):
    with pytest.raises(UserError, match=f"sets {', '.join(given)} but not"):
        rank_environment(given)


@pytest.mark.parametrize(("step", "by_srun"), [(0xFFFF_FFEF, True), (0xFFFF_FFF0, False)])
def test_slurm_s_own_steps_are_no_ranks(step: int, by_srun: bool):
    environment = {**STEP, "SLURM_STEP_ID": str(step)}
    if by_srun:
        assert rank_environment(environment)["WORLD_SIZE"] == "8"
    else:
        with pytest.raises(UserError, match="put `srun` before"):
            rank_environment(environment)


def test_the_number_of_restarts_and_of_the_step_move_the_port():
    base = int(rank_environment(STEP)["MASTER_PORT"])
    assert int(rank_environment({**STEP, "SLURM_RESTART_COUNT": "2"})["MASTER_PORT"]) == base + 14
    assert int(rank_environment({**STEP, "SLURM_STEP_ID": "3"})["MASTER_PORT"]) == base + 3
    assert rank_environment({**STEP, "SLURM_PROCID": "5", "SLURM_LOCALID": "2"}).items() >= {
        "RANK": "5", "LOCAL_RANK": "2"}.items()  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "launcher"), [("MPI_WORLD_SIZE", "mpirun"), ("PALS_SIZE", "PALS"), ("PMI_SIZE", "mpiexec")]
)
def test_further_launchers_are_named(variable: str, launcher: str):
    with pytest.raises(UserError, match=rf"^{launcher} started 2 processes \({variable}=2\)"):
        rank_environment({variable: "2"})


def test_pmi_of_another_size_than_the_step_is_mpiexec():
    with pytest.raises(UserError, match="mpiexec started 4 processes"):
        rank_environment({**STEP, "PMI_SIZE": "4"})


@pytest.mark.parametrize(
    ("environment", "tasks"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_NPROCS": "9"}, 4),
        ({"SLURM_NTASKS_PER_NODE": "3", "SLURM_NNODES": "2"}, 6),
        ({"SLURM_NTASKS_PER_NODE": "3", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "9"}, 6),
        ({"SLURM_NTASKS_PER_NODE": "3"}, 3),
        ({"SLURM_JOB_NUM_NODES": "2"}, 2),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "1"}, 2),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "3(x2)"}, 6),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_CPUS_PER_NODE": "4(x2)"}, 8),
    ],
)
def test_the_tasks_of_an_allocation(environment: dict[str, str], tasks: int):
    with pytest.raises(UserError, match=f"this Slurm allocation has {tasks} tasks"):
        rank_environment({"SLURM_JOB_ID": "1", **environment})


@pytest.mark.parametrize(
    ("environment", "world", "nodes"),
    [
        ({}, 3, [0, 0, 0]),
        ({"LOCAL_WORLD_SIZE": "2"}, 5, [0, 0, 1, 1, 2]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, 4, [0, 0, 1, 1]),  # of a step with more ranks
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x4)", "LOCAL_WORLD_SIZE": "1"}, 3, [0, 1, 2]),
        ({"SLURM_STEP_TASKS_PER_NODE": "0"}, 2, [0, 0]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,2"}, 3, [0, 1, 1]),
    ],
)
def test_nodes_of_ranks_without_a_list_that_fits(environment: dict[str, str], world: int, nodes: list[int]):
    assert nodes_of_ranks(environment, world) == nodes


def test_the_launcher_itself_knows_the_node_best():
    slurm = {"SLURM_NODEID": "3", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "LOCAL_WORLD_SIZE": "2"}
    assert node_index({"GROUP_RANK": "7", **slurm}, 1, 4) == 7
    assert node_index(slurm, 1, 4) == 3
    assert node_index(slurm, 2, 4) == 1  # of another rank
    assert node_index(slurm, 1, 5) == 0  # of another world
    assert node_index({"LOCAL_WORLD_SIZE": "2"}, 3, 4) == 1


@pytest.mark.parametrize("text", ["4.0", "-1", "\u0664", "1e3", "0x4"])
def test_only_whole_numbers_are_numbers(text: str):
    with pytest.raises(UserError, match="is not a whole number"):
        rank_environment({"SLURM_NTASKS": text})


def test_a_heterogeneous_job_has_more_than_one_component():
    refuse_heterogeneous({"SLURM_HET_SIZE": "1"})
    refuse_heterogeneous({})
    with pytest.raises(UserError, match="of 2 components"):
        refuse_heterogeneous({"SLURM_HET_SIZE": "2"})


def test_the_suffix_of_a_site_belongs_to_the_name_of_a_node():
    assert master_address({}, "n1") == "n1"
    assert master_address({"MOTIONMAE_MASTER_SUFFIX": "-ib"}, "n1") == "n1-ib"
    assert master_address({"MOTIONMAE_MASTER_SUFFIX": "-ib", "MASTER_ADDR": "x"}, "n1") == "x"
    assert list(host_names("node[1-2,7]")) == ["node1", "node2", "node7"]
