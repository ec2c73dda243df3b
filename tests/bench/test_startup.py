"""What a command without a network takes, against importing torch and against the first export."""

from bench import startup


def test_a_row_for_each_command_and_one_for_the_second_export(monkeypatch) -> None:
    monkeypatch.setattr(startup, "ROUNDS", 1)
    monkeypatch.setattr(startup, "COMMANDS", ("engine.bank",))
    of_help, again = startup.rows()
    assert of_help.case == "startup/engine.bank --help"
    assert again.case == "startup/export --network teacher --runtime onnxruntime, again"
    for row in (of_help, again):
        assert row.floor > 0
        assert row.ratio == row.theirs / row.ours
