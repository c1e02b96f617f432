"""The paper's numbers."""

import pytest

from ldmlab.paper import numbers as paper

TABLES = [f"Tab. {k}" for k in range(1, 19)]


def test_every_number_has_its_mark_and_source_and_stands_once():
    """Nothing from memory, and nothing twice."""
    numbers = paper.numbers()
    assert {n.mark for n in numbers} == {"S", "W", "R", "D"}
    sources = {"S": ("LDM v2, ",), "W": ("LDM v2, ", "github.com/"), "R": ("released ",), "D": ("LDM v2, Tab.",)}
    assert all(n.source.startswith(sources[n.mark]) for n in numbers)
    assert all(n.source.endswith("(ar5iv)") for n in numbers if n.mark == "W" and n.source.startswith("LDM"))
    assert len({(n.table, n.row, n.metric) for n in numbers}) == len(numbers)


def test_all_18_tables_are_there_in_order():
    """Tab. 1-18, and after them what captions, text, README and configurations add."""
    order = list(dict.fromkeys(n.table for n in paper.numbers()))
    assert order[:18] == TABLES and {"Sec. 4.1", "App. E.3.1", "README", "Released"} < set(order)


@pytest.mark.parametrize(("name", "num_rows", "num_values"), [
    ("Tab. 1", 26, 52), ("Tab. 2", 6, 25), ("Tab. 3", 5, 33), ("Tab. 4", 4, 8), ("Tab. 5", 5, 40), ("Tab. 6", 4, 20),
    ("Tab. 7", 10, 50), ("Tab. 9", 6, 12), ("Tab. 10", 17, 110), ("Tab. 11", 7, 52), ("Tab. 16", 7, 7),
    ("Tab. 17", 2, 6), ("Tab. 18", 19, 165),
])
def test_no_row_of_a_table_is_lost(name, num_rows, num_values):
    """Rows and numbers as counted in the paper; a line that falls out of the file shows."""
    rows = paper.table(name)
    assert (len(rows), sum(map(len, rows.values()))) == (num_rows, num_values)


def test_the_points_of_drawn_curves_are_absent():
    """The paper draws Fig. 6, 7 and 17 and tabulates none of their FIDs."""
    for figure in ("Fig. 6", "Fig. 7", "Fig. 17"):
        assert not {"fid", "is", "images_per_s"} & set(paper.table(figure)["all points"])


def test_tab_8_is_whole():
    """19 rows, 16 of them the paper's own."""
    rows = paper.tab8()
    assert len(rows) == 19 and sum(row.note != "prior work" for row in rows) == 16
    (kl8,) = [row for row in rows if row.name == "KL-f8"]
    assert (kl8.f, kl8.c, kl8.psnr, kl8.r_fid, kl8.num_codes) == (8, 4, 24.19, 0.90, None)
    for reg in ("kl", "vq"):
        assert [row.f for row in paper.first_stages(reg)] == [2, 4, 8, 16, 32]
    assert [row.c for row in paper.first_stages("kl")] == [2, 3, 4, 16, 64]
    assert all("psnr_sd" in row and "ssim_sd" in row for row in paper.table("Tab. 8").values())


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


def test_what_the_text_says_of_the_curves():
    """The constants that figures and notebooks use come from the file, in their old types."""
    assert paper.FID_GAP_LDM1_LDM8 == 38.0 and paper.BEST_F == (4, 8) and paper.BALANCED_F == (4, 8, 16)
    assert paper.TAB10_GUIDANCE == ((1.0, 10.56, 103.49), (1.25, 3.95, 178.22), (1.5, 3.60, 247.67))


def test_a_table_that_is_not_there_is_named():
    """And those that are there."""
    with pytest.raises(ValueError, match="no table 'Tab. 99'; there are .*Tab. 1, Tab. 10"):
        paper.table("Tab. 99")
