from benchmarks.plots import FIGURES, draw


def test_figures_show_what_the_tables_say():
    for name, figure in draw().items():
        drawn = (FIGURES / name).read_text(encoding="utf-8")
        assert drawn == figure, "run: python -m benchmarks.plots"
