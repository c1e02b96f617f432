"""The paper's numbers."""

import pytest

from ldmlab.study import paper


def test_every_number_has_its_mark_and_source_and_stands_once():
    """Nothing from memory, and nothing twice."""
    numbers = paper.numbers()
    assert {n.mark for n in numbers} == {"S", "R", "D"}
    assert all(n.source.startswith("LDM v2, Tab.") if n.mark in "SD" else n.source.startswith("released")
               for n in numbers)
    assert len({(n.table, n.row, n.metric) for n in numbers}) == len(numbers)
    assert {n.table for n in numbers} == {f"Tab. {k}" for k in (1, 8, 12, 13, 14, 15, 18)}


def test_tab_8_is_whole():
    """19 rows, 16 of them the paper's own."""
    rows = paper.tab8()
    assert len(rows) == 19 and sum(row.note != "prior work" for row in rows) == 16
    (kl8,) = [row for row in rows if row.name == "KL-f8"]
    assert (kl8.f, kl8.c, kl8.psnr, kl8.r_fid, kl8.num_codes) == (8, 4, 24.19, 0.90, None)
    for reg in ("kl", "vq"):
        assert [row.f for row in paper.first_stages(reg)] == [2, 4, 8, 16, 32]
    assert [row.c for row in paper.first_stages("kl")] == [2, 3, 4, 16, 64]


def test_three_first_stages_keep_as_many_numbers():
    """f and rate are separate axes: f = 8, 16 and 32 of Tab. 8 have the same 4096 dimensions."""
    assert [row.dims for row in paper.first_stages("kl")] == [32768, 12288, 4096, 4096, 4096]


def test_the_sweep_s_rows():
    """Hyper-parameters arrive in their types."""
    row = paper.table("Tab. 13")["LDM-8"]
    assert row["ch_mult"] == (1, 2, 4) and row["attn_resolutions"] == (32, 16, 8) and row["num_params"] == 395e6
    assert (row["batch_size"], row["lr"], row["num_steps"]) == (64, 6.4e-5, 2_000_000)
    assert list(paper.table("Tab. 14")) == ["LDM-1", "LDM-2", "LDM-4", "LDM-8", "LDM-16", "LDM-32"]
    assert paper.table("Tab. 18")["ImageNet / LDM-8"]["fid"] == 17.41


@pytest.mark.parametrize("name", ["Tab. 12", "Tab. 13", "Tab. 14"])
def test_learning_rates_are_batch_size_times_a_round_number(name):
    """lr = batch size * base rate in every sweep; a typing error in either column would show."""
    for row in paper.table(name).values():
        base = row["lr"] / row["batch_size"] * 1e6
        assert min(abs(base - known) / known for known in (0.4, 0.52, 1.0, 2.0, 7.0, 10.0)) < 0.025


@pytest.mark.parametrize("name", ["Tab. 12", "Tab. 13", "Tab. 14", "Tab. 15"])
def test_latents_have_the_shape_that_f_gives(name):
    """256 px over f, in each table's every row."""
    assert all(row["z_shape"][:2] == (256 // row["f"],) * 2 for row in paper.table(name).values())


def test_a_table_that_is_not_there_is_named():
    """Other tables come with the studies that need them."""
    with pytest.raises(ValueError, match="no table 'Tab. 99'; there are Tab. 1, Tab. 12"):
        paper.table("Tab. 99")
