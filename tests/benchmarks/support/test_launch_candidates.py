from benchmarks.support.launch_candidates import candidates, first_guess

ROW = {"BLOCK_M": 64, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2}


def test_the_row_comes_first_and_its_neighbours_follow_by_number_of_changes() -> None:
    found = candidates(ROW)
    changes = [sum(row[name] != ROW[name] for name in ROW) for row in found]
    assert found[0] == ROW
    assert changes == sorted(changes)
    assert max(changes) == 2
    assert len({tuple(row.items()) for row in found}) == len(found)
    assert {row["BLOCK_M"] for row in found} == {32, 64, 128}
    assert {row["BLOCK_N"] for row in found} == {16, 32}  # no product takes fewer than 16
    assert {row["num_warps"] for row in found} == {4, 8}
    assert {row["num_stages"] for row in found} == {1, 2, 3}


def test_settings_that_are_not_known_here_stay() -> None:
    assert {row["SPLITS"] for row in candidates({"SPLITS": 4, **ROW})} == {4}


def test_a_guess_has_blocks_warps_and_stages() -> None:
    assert first_guess({"BLOCK_M": 32, "SPLITS": 4}) == {"BLOCK_M": 64, "SPLITS": 4, "num_warps": 4, "num_stages": 2}
