"""What both sides of the roll call prove, and how long a message may be."""

from slurm.batch.protocol import LINE_LIMIT, Assignment, Process, is_proof, line, new_token, proof


def test_a_proof_names_its_sender_and_holds_for_its_nonces_and_token_only() -> None:
    """Otherwise a stranger could send a process's own proof back, and pass for the supervisor."""
    token, first, second = new_token(), "1" * 64, "2" * 64
    given = proof(token, "process", first, second)
    assert is_proof(given, token, "process", first, second)
    assert not is_proof(given, token, "supervisor", first, second)
    assert not is_proof(given, token, "process", second, first)
    assert not is_proof(given, new_token(), "process", first, second)


def test_the_assignment_of_a_job_of_ten_thousand_nodes_is_a_line() -> None:
    nodes = [f"gpu-rack{number // 36:03d}-node{number % 36:02d}" for number in range(10_000)]
    earlier = [Process(pid=4_000_000, began=10**9)] * 64
    assert len(line(Assignment(rank=79_999, ranks_per_node=8, nodes=nodes, predecessors=earlier))) < LINE_LIMIT
