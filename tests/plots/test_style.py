"""What all figures share: their language."""

from ssdlib.plots.style import in_language, new_figure


def test_a_figure_speaks_the_language_in_use_names_of_ticks_too(monkeypatch):
    monkeypatch.setenv("SSDLIB_LANGUAGE", "ru")
    figure, ax = new_figure()
    ax.barh(["class", "missed", "nobody says this"], [1, 2, 3], label="truth")
    ax.set_title("Overfitting", loc="left")
    ax.legend()
    in_language(figure).canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["класс", "пропуск", "nobody says this"]
    assert ax.get_title(loc="left") == "Переобучение"
    assert ax.get_legend().get_texts()[0].get_text() == "на самом деле"
