"""`specedge bench simulate`: its grid, costs, processes, files and errors."""

import json
from dataclasses import replace
from math import isnan

import pytest
from simulated import scenario

from specedge.errors import SettingsError
from specedge_bench.curves import load_curve
from specedge_bench.devices import BadPrice, price_of, price_table
from specedge_bench.run_folder import RunFolder
from specedge_bench.simulation import command, grid
from specedge_bench.simulation.flags import simulate_parser
from specedge_bench.simulation.grid import Point, run_points
from specedge_bench.simulation.points import PointMaker
from specedge_bench.simulation.priced import Devices, simulated_cost
from specedge_bench.simulation.processes import run_shards
from specedge_bench.simulation.scenario import ScenarioError
from specedge_bench.simulation.shard import run_shard
from specedge_bench.simulation.simulation import simulate

FAST = ["--max-tokens", "16", "--verifier-curve", "30ms", "--draft-curve", "5ms"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_command_prints_a_row_per_combination_and_writes_it(tmp_path, capsys):
    out = tmp_path / "deep" / "rows.jsonl"
    arguments = ["--system", "autoregressive,specedge", "--sessions", "1,2", "--mode", "streamed,off", *FAST]
    assert command.main([*arguments, "--processes", "1", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert [(row["sessions"], row["system"], row["mode"]) for row in rows_of(out)] == [
        (1, "autoregressive", None),
        (1, "specedge", "streamed"),
        (1, "specedge", "off"),
        (2, "autoregressive", None),
        (2, "specedge", "streamed"),
        (2, "specedge", "off"),
    ]
    assert table.splitlines()[0].startswith("| system | mode | sessions | tokens/s |")
    assert len([line for line in table.splitlines() if line.startswith("| specedge")]) == 4
    assert "claims are honest" in table
    assert "A straight line has no device" in table


def test_a_bounded_queue_refuses_and_the_table_says_how_often(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    arguments = ["--system", "autoregressive", "--sessions", "3,12", "--max-batch-size", "4", *FAST, "--processes", "1"]
    assert command.main([*arguments, "--max-waiting", "2", "--out", str(out)]) == 0
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()[:4])
    few, many = rows_of(out)
    assert (few["num_refused"], few["num_answers"], many["num_answers"]) == (0, 6, 24)
    assert many["num_refused"] >= 12 - 4 - 2
    assert [int(row[head.index("refused")]) for row in rows] == [0, many["num_refused"]]
    assert command.main(arguments) == 0
    assert "refused" not in capsys.readouterr().out


def test_processes_change_neither_numbers_nor_order(tmp_path, capsys):
    tables = []
    for num_processes in ("1", "3"):
        arguments = ["--system", "specedge", "--sessions", "4,1", "--edges", "4", "--verifiers", "2", *FAST]
        arguments += ["--network", "home,lan", "--processes", num_processes, "--out", str(tmp_path / num_processes)]
        assert command.main(arguments) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "3")
    assert [row["network"] for row in rows_of(tmp_path / "3")] == ["home", "lan", "home", "lan"]


def test_repetitions_become_one_row_with_its_spread(tmp_path, capsys):
    shared = ["--system", "autoregressive", "--sessions", "3", "--rtt-ms", "5", *FAST, "--processes", "1"]
    assert command.main([*shared, "--repetitions", "3", "--out", str(tmp_path / "mean")]) == 0
    assert "±" in capsys.readouterr().out
    assert command.main([*shared, "--seed", "0,1,2", "--out", str(tmp_path / "each")]) == 0
    (mean,), each = rows_of(tmp_path / "mean"), rows_of(tmp_path / "each")
    speeds = [row["tokens_per_s"] for row in each]
    assert mean["tokens_per_s"] == pytest.approx(sum(speeds) / 3)
    assert mean["spread"]["tokens_per_s"] == pytest.approx((sum((x - sum(speeds) / 3) ** 2 for x in speeds) / 2) ** 0.5)
    assert mean["repetitions"] == 3 and each[0]["spread"] is None


def test_cost_pays_every_reserved_device_and_busy_seconds():
    chosen = scenario(num_sessions=6, num_edges=3, num_verifiers=2, length_spread=0.2)
    devices = Devices("H100", "rtx-4090", price_table(["h100=0.002"]))
    result = simulate(chosen)
    cost = simulated_cost(chosen, [result], devices)
    assert cost.billed_dollars == pytest.approx(result.wall_s * (2 * 0.002 + 3 * 0.00009722222))
    assert cost.active_dollars == pytest.approx(result.verifier_busy_s * 0.002 + result.draft_busy_s * 0.00009722222)
    local = replace(chosen, system="server-only")
    result = simulate(local)
    cost = simulated_cost(local, [result, result], devices)
    assert cost.num_tokens == 2 * result.num_tokens
    assert cost.billed_dollars == pytest.approx(2 * result.wall_s * 2 * 0.002)
    assert cost.active_dollars == pytest.approx(2 * result.verifier_busy_s * 0.002)  # drafting is part of it


def test_rows_carry_costs_and_their_ratio_to_both_baselines(tmp_path, capsys):
    out = tmp_path / "rows"
    arguments = ["--sessions", "4", "--max-tokens", "24", "--rtt-ms", "5", "--processes", "1", "--out", str(out)]
    assert command.main(arguments) == 0
    assert "tokens/$ ÷ server-only" in capsys.readouterr().out
    plain, local, edge = rows_of(out)
    assert plain["billed_per_million"] == pytest.approx(1e6 * 0.001125 / plain["tokens_per_s"])
    rate = 0.001125 + 0.00009722222
    assert edge["billed_per_million"] == pytest.approx(1e6 * rate / edge["tokens_per_s"])
    ratio = edge["tokens_per_s"] / plain["tokens_per_s"] * 0.001125 / rate
    assert edge["efficiency_to_autoregressive"] == pytest.approx(ratio)
    assert plain["efficiency_to_server_only"] == pytest.approx(
        local["billed_per_million"] / plain["billed_per_million"]
    )
    assert local["efficiency_to_server_only"] == 1.0


def test_a_device_without_a_price_is_named_and_one_given_is_used(tmp_path, capsys):
    shared = ["--system", "autoregressive,specedge", "--sessions", "1", "--max-tokens", "8", "--processes", "1"]
    shared += ["--verifier-curve", "H100/Qwen3-14B", "--out", str(tmp_path / "rows")]
    assert command.main(shared) == 0
    shown = capsys.readouterr().out
    assert "$/M" not in shown and "--price 'H100=DOLLARS_PER_S'" in shown
    assert rows_of(tmp_path / "rows")[0]["billed_per_million"] is None
    assert command.main([*shared, "--price", "h100=0.001"]) == 0
    shown = capsys.readouterr().out
    assert "$/M tokens billed" in shown and "No built-in price" not in shown
    assert command.main([*shared, "--verifier-gpu", "A100-80"]) == 0
    assert rows_of(tmp_path / "rows")[0]["verifier_device"] == "A100-80"


def test_server_only_drafts_at_the_pace_of_the_verifiers_device(tmp_path):
    measured = {"schema_version": 1, "device": "My GPU", "dtype": "bfloat16", "method": "measured graph"}
    measured |= {"rows": [1], "prefixes": [128]}
    for name, model, step_ms in (("big", "Qwen3-14B", 20), ("small", "Qwen3-1.7B", 2)):
        fields = {**measured, "name": name, "model": model, "ms": [[step_ms]]}
        (tmp_path / f"{name}.json").write_text(json.dumps(fields))

    def draft_seconds(*flags):
        options = simulate_parser().parse_args(["--system", "server-only", *flags])
        (point,) = PointMaker(options).points()
        return point.scenarios[0].draft_curve.seconds(1, 128, 1)

    roofline = load_curve("H100/Qwen3-1.7B").seconds(1, 128, 1)
    assert draft_seconds("--verifier-curve", "H100/Qwen3-14B") == pytest.approx(roofline, rel=1e-3)
    assert draft_seconds("--verifier-curve", "h100-qwen3-14b-roofline") == pytest.approx(roofline, rel=1e-3)
    assert draft_seconds("--verifier-curve", "30ms", "--draft-curve", "5ms") == 0.005
    of_my_gpu = ["--verifier-curve", str(tmp_path / "big.json")]
    with pytest.raises(ScenarioError, match=r"a curve of Qwen3-1\.7B on My GPU, of which there is no profile"):
        draft_seconds(*of_my_gpu)
    assert draft_seconds(*of_my_gpu, "--server-draft-curve", str(tmp_path / "small.json")) == 0.002


def test_price_tables():
    prices = price_table(["H100=0.5", "rtx_4090=2", "My GPU=0"])
    assert price_of(prices, "h100") == 0.5
    assert price_of(prices, "RTX 4090") == 2
    assert price_of(prices, "my-gpu") == 0
    assert price_of(prices, "A100 40") == 0.001125
    assert isnan(price_of(prices, "H200"))
    for text in ("H100", "=1", "H100=x", "H100=-1", "H100=nan", "H100=inf"):
        with pytest.raises(BadPrice, match="NAME=DOLLARS_PER_S"):
            price_table([text])


def test_an_interrupt_keeps_what_was_simulated(tmp_path, monkeypatch, capsys):
    def interrupted(tasks, num_processes, on_progress):
        yield 1, run_shard(*tasks[1])
        yield 0, run_shard(*tasks[0])
        yield 3, run_shard(*tasks[3])
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run_shards", interrupted)
    out = tmp_path / "rows"
    arguments = ["--system", "autoregressive", "--sessions", "1,2,3,4,5", *FAST, "--out", str(out)]
    assert command.main(arguments) == 130
    assert [row["sessions"] for row in rows_of(out)] == [1, 2, 4]
    assert "| 4 |" in capsys.readouterr().out


def test_points_are_told_in_order_whatever_finishes_first(monkeypatch):
    def backwards(tasks, num_processes, on_progress):
        for index in reversed(range(len(tasks))):
            yield index, run_shard(*tasks[index])

    monkeypatch.setattr(grid, "run_shards", backwards)
    points = [
        Point(
            {"system": "specedge", "sessions": number},
            (scenario(num_sessions=number, max_tokens=4),),
            Devices("", "", {}),
        )
        for number in (1, 2, 3)
    ]
    told = []
    run_points(points, 2, lambda found: told.append(found.result.num_answers))
    assert told == [1, 2, 3]


def test_an_error_in_a_process_is_told():
    bad = scenario(num_kv_blocks=1)
    with pytest.raises(ScenarioError, match="num_kv_blocks is 1, at 16 tokens each too few for a text of 82"):
        list(run_shards([(bad, 0), (bad, 0)], 2, lambda num_tokens: None))


def test_progress_counts_the_tokens_of_all_tasks():
    tasks = [(scenario(system="autoregressive", max_tokens=20, seed=seed), 0) for seed in range(3)]
    for num_processes in (1, 2):
        seen = []
        assert sorted(index for index, _ in run_shards(tasks, num_processes, seen.append)) == [0, 1, 2]
        assert seen == sorted(seen)
        assert num_processes > 1 or seen[-1] == 60


def test_a_report_folder_can_be_read_like_a_measured_one(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["--sessions", "2,3", "--network", "metro", "--max-tokens", "24", "--repetitions", "2"]
    assert command.main([*arguments, "--processes", "1", "--report", str(folder)]) == 0
    assert "simulated, not measured" in (folder / "report.md").read_text()
    run = RunFolder.load(folder)
    assert run.info.source == "simulated" and run.info.prices["A100-40"] == 0.001125
    cells = {cell.cell for cell in run.cells}
    assert cells == {
        f"{system}/metro/closed-{number}"
        for number in (2, 3)
        for system in ("autoregressive", "server-only", "specedge:streamed:ready")
    }
    assert len(run.cells) == 12 and len(run.requests) == 2 * 2 * (2 + 3) * 3
    cell = next(cell for cell in run.cells if cell.system.startswith("specedge"))
    steps = [step for step in run.steps if (step.cell, step.repetition) == (cell.cell, cell.repetition)]
    assert sum(step.num_nodes for step in steps) == cell.num_nodes_verified > 0
    assert sum(step.forward_ms for step in steps) == pytest.approx(1e3 * cell.verifier_busy_s)
    assert sum(cell.accepted_by_depth) == cell.num_accepted
    assert cell.bytes_up > cell.bytes_down > 0
    with pytest.raises(SettingsError, match="holds a run already"):
        command.main([*arguments, "--report", str(folder)])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--network", "moon"], "unknown network profile 'moon'; known are lan, metro, wan"),
        (["--verifier-curve", "H300/Qwen3-14B"], "device H300: known are A100-40"),
        (["--verifier-curve", "nothing"], "profile nothing: no such file; known are"),
        (["--draft-curve", "0ms"], "more than 0"),
        (["--trace", "nowhere"], "no such file; recorded ones are"),
        (["--verifiers", "2", "--edges", "1"], "num_verifiers is 2, num_edges only 1"),
        (["--price", "H100=1"], "nothing runs on H100; devices here are A100-40, RTX 4090"),
        (["--price", "A100-40=x"], "NAME=DOLLARS_PER_S"),
        (["--report", "x", "--prompt-tokens", "1", "--seed", "1,2"], "--report takes one value of --seed, not 2"),
        (["--report", "x", "--verifiers", "2"], "--report takes one verifier, not 2"),
        (["--report", "x", "--max-waiting", "2"], "--report shows nobody who was refused"),
    ],
)
def test_unknown_names_are_refused_with_what_is_known(flags, reason):
    with pytest.raises(SettingsError, match=reason):
        command.main(flags)


@pytest.mark.parametrize(
    "flags",
    [["--system", "magic"], ["--sessions", "0"], ["--rtt-ms", "x"], ["--sessions", "1,,2"], ["--seed", "-1"]],
)
def test_command_refuses_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(flags)
    assert caught.value.code == 2
    assert "argument" in capsys.readouterr().err


def test_list_names_curves_devices_networks_and_traces(capsys):
    assert command.main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name in ("h200-qwen3-32b-roofline", "jetson-agx-orin", "CPU: no price", "RTX 4090: 9.72222e-05 $/s", "home"):
        assert name in shown


@pytest.mark.parametrize("device", ["A100-40", "A100-80", "H100", "H200"])
@pytest.mark.parametrize("edge", ["RTX 4090/Qwen3-0.6B", "Jetson AGX Orin/Qwen3-0.6B", "CPU/Qwen3-0.6B"])
def test_every_device_can_be_simulated(device, edge, capsys):
    arguments = ["--system", "specedge", "--sessions", "1", "--max-tokens", "8", "--requests-per-user", "1"]
    arguments += ["--verifier-curve", f"{device}/Qwen3-14B", "--draft-curve", edge, "--processes", "1"]
    assert command.main(arguments) == 0
    assert "| specedge | streamed |" in capsys.readouterr().out
