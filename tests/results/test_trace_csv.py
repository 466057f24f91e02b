"""Reading a meter's CSV: every dialect is read rightly, or refused by line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import InputError, UsageError
from edgebench.results.trace_csv import Trace, TraceOptions, parse_columns, read_trace

T = 1_767_323_045.0  # 2026-01-02T03:04:05Z


def read(
    tmp_path: Path, text: str | bytes, columns: str = "time=t,power=P", **options: object
) -> Trace:
    path = tmp_path / "meter.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trace(path, parse_columns(columns), TraceOptions(**options))  # type: ignore[arg-type]


def refusal(tmp_path: Path, text: str | bytes, *args: str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, *args, **options)
    return str(caught.value).replace(str(tmp_path), "")


# -------------------------------------------------------------------------- dialects that are read


def test_a_plain_table_is_read_as_it_stands(tmp_path):
    trace = read(tmp_path, "t,P\n0,1.5\n0.5,2.5\n1.0,3\n")
    assert trace.t_s.tolist() == [0, 0.5, 1.0]
    assert trace.value.tolist() == [1.5, 2.5, 3]
    assert (trace.quantity, trace.absolute, trace.period_s) == ("power", False, 0.5)
    assert trace.resolution == 0.5


def test_header_lines_a_bom_semicolons_and_decimal_commas(tmp_path):
    text = "\ufeffYokogawa;WT310\r\nSerial;12,5\r\n\r\n"
    text += "Time;U;P [mW]\r\n0;5,0;1500,5\r\n1,5;5,0;3e3\r\n"
    trace = read(tmp_path, text, "time=Time,power=P [mW]", decimal=",")
    assert trace.t_s.tolist() == [0, 1.5]
    assert trace.value == pytest.approx([1.5005, 3.0])
    assert (trace.delimiter, trace.header_line, trace.units["power"]) == (";", 4, "mW")


def test_utf_16_and_windows_1252_are_read(tmp_path):
    assert read(tmp_path, "t,P\n0,1\n1,2\n".encode("utf-16")).value.tolist() == [1, 2]
    trace = read(tmp_path, "t,P (µW)\n0,1\n1,2\n".encode("cp1252"), "time=t,power=P (µW)")
    assert trace.value == pytest.approx([1e-6, 2e-6])


def test_a_row_of_units_is_no_reading_and_is_obeyed(tmp_path):
    trace = read(tmp_path, "t,P\nms,mW\n0,15\n500,25\n")
    assert trace.t_s.tolist() == [0, 0.5]
    assert trace.value == pytest.approx([0.015, 0.025])


def test_columns_by_number_where_there_is_no_header(tmp_path):
    trace = read(tmp_path, "0\t7\t1.5\n1\t7\t2.5\n", "time=#1,power=#3")
    assert trace.value.tolist() == [1.5, 2.5]
    assert trace.header_line == 0


def test_current_times_voltage_is_power(tmp_path):
    text = "t,I,U\n0,100,5\n1,200,5.1\n"
    trace = read(tmp_path, text, "time=t,current=I,voltage=U", units={"current": "mA"})
    assert trace.value == pytest.approx([0.5, 1.02])


def test_an_energy_counter_stays_a_counter(tmp_path):
    trace = read(tmp_path, "t,E\n0,1\n1,1.5\n", "time=t,energy=E", units={"energy": "Wh"})
    assert trace.quantity == "energy"
    assert trace.value.tolist() == [3600, 5400]


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (("2026-01-02T03:04:05Z", "2026-01-02T03:04:06.5Z"), {}),
        (("2026-01-02 04:04:05+01:00", "2026-01-02 04:04:06.5+01:00"), {}),
        (("2026-01-02 04:04:05", "2026-01-02 04:04:06.5"), {"timezone": "Europe/Berlin"}),
        (("2026-01-02 03:04:05", "2026-01-02 03:04:06.5"), {"timezone": "UTC"}),
        (
            ("02.01.2026 04:04:05.0", "02.01.2026 04:04:06.5"),
            {"timezone": "Europe/Berlin", "units": {"time": "%d.%m.%Y %H:%M:%S.%f"}},
        ),
        ((f"{T:.1f}", f"{T + 1.5:.1f}"), {}),
        ((f"{T * 1e3:.0f}", f"{T * 1e3 + 1500:.0f}"), {"units": {"time": "ms"}}),
    ],
)
def test_wall_clock_time_in_every_form_is_the_same_moment(tmp_path, cells, options):
    trace = read(tmp_path, f"t,P\n{cells[0]},1\n{cells[1]},2\n", **options)
    assert trace.absolute
    assert trace.t_s == pytest.approx([T, T + 1.5], abs=1e-6)


def test_date_and_time_in_two_columns_with_decimal_commas(tmp_path):
    text = "Date;Time;P\n02.01.2026;04:04:05,5;1,5\n02.01.2026;04:04:06,5;2,5\n"
    units = {"time": "%d.%m.%Y %H:%M:%S.%f"}
    options = {"units": units, "timezone": "Europe/Berlin", "decimal": ","}
    trace = read(tmp_path, text, "time=Date+Time,power=P", **options)
    assert trace.t_s == pytest.approx([T + 0.5, T + 1.5], abs=1e-6)
    assert trace.value.tolist() == [1.5, 2.5]


def test_the_tick_of_a_clock_is_seen(tmp_path):
    assert read(tmp_path, "t,P\n0,1\n1,2\n2,3\n").tick_s == 1
    assert read(tmp_path, "t,P\n0,1\n1.25,2\n2,3\n").tick_s == pytest.approx(0.01)


def test_a_little_noise_below_zero_is_kept(tmp_path):
    trace = read(tmp_path, "t,P\n0,-0.001\n1,1\n2,0.001\n")
    assert trace.value[0] == -0.001


# ------------------------------------------------------------------------------------ named faults


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"can't be read.*nothing\.csv"):
        read_trace(tmp_path / "nothing.csv", parse_columns("time=t,power=P"), TraceOptions())


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file(tmp_path, text):
    assert "the trace is empty" in refusal(tmp_path, text)


def test_a_header_without_rows(tmp_path):
    assert "a header and no rows" in refusal(tmp_path, "t,P\n")


def test_something_that_is_no_text(tmp_path):
    assert "is no text" in refusal(tmp_path, b"PK\x03\x04\x00\x00\x08\x00")


def test_a_missing_column_names_those_that_there_are_and_guesses(tmp_path):
    said = refusal(tmp_path, "Meter,7\nTime,Power,Volts\n0,1,5\n", "time=Time,power=Powr")
    assert "no column 'Powr'" in said
    assert "Did you mean 'Power'? There are: Time, Power, Volts." in said


def test_text_in_a_column_of_numbers_names_line_and_column(tmp_path):
    said = refusal(tmp_path, "Meter,7\n\nt,P\n0,1\n1,OL\n2,3\n")
    assert "'OL' is no number" in said
    assert "line 5, column P" in said


@pytest.mark.parametrize("cell", ["inf", "1.5 W", "1_000", "0x10", "--", "True"])
def test_cells_that_look_like_numbers_to_some_are_refused(tmp_path, cell):
    assert f"{cell!r} is no number" in refusal(tmp_path, f"t,P\n0,1\n1,{cell}\n")


def test_empty_cells_are_counted_and_are_no_readings(tmp_path):
    trace = read(tmp_path, "t,P\n0,1\n1,\n2,nan\n3,4\n")
    assert trace.t_s.tolist() == [0, 3]
    assert trace.missing == 2


def test_decimal_commas_with_semicolons_are_asked_for(tmp_path):
    assert "say --decimal ," in refusal(tmp_path, "t;P\n0;1,5\n1;2,5\n")


def test_decimal_commas_between_commas_are_seen_in_the_first_row(tmp_path):
    assert "export it with semicolons" in refusal(tmp_path, "t,P\n0,1,5\n1,2,5\n")


def test_decimal_commas_between_commas_are_seen_further_down(tmp_path):
    said = refusal(tmp_path, "t,P\n0,1\n1,2\n2,2,5\n3,3\n")
    assert "the row has 3 cells and the table 2 columns" in said
    assert "line 4" in said


def test_quoted_decimal_commas_between_commas_are_read(tmp_path):
    trace = read(tmp_path, 't,P\n"0,5","1,5"\n"1,5","2,5"\n', decimal=",")
    assert trace.value.tolist() == [1.5, 2.5]


def test_a_thousands_point_is_never_taken_for_a_decimal(tmp_path):
    assert "'1.234' has a point" in refusal(tmp_path, "t;P\n0;1.234\n1;2\n", decimal=",")


def test_local_time_without_a_place(tmp_path):
    said = refusal(tmp_path, "t,P\n2026-01-02 03:04:05,1\n2026-01-02 03:04:06,2\n")
    assert "is a local time, and nothing says of which place" in said
    assert "--timezone" in said


def test_a_time_that_happens_twice(tmp_path):
    text = "t,P\n2026-10-25 01:59:59,1\n2026-10-25 02:00:00,2\n"
    said = refusal(tmp_path, text, timezone="Europe/Berlin")
    assert "happens twice in Europe/Berlin" in said
    assert "line 3" in said


def test_a_time_that_never_happens(tmp_path):
    text = "t,P\n2026-03-29 02:30:00,1\n2026-03-29 02:30:01,2\n"
    assert "does not exist in Europe/Berlin" in refusal(tmp_path, text, timezone="Europe/Berlin")


def test_times_with_and_without_an_offset_in_one_file(tmp_path):
    text = "t,P\n2026-01-02 03:04:05Z,1\n2026-01-02 03:04:06,2\n"
    assert "another form than the times before" in refusal(tmp_path, text)


def test_a_form_of_time_that_may_mean_two_days(tmp_path):
    said = refusal(tmp_path, "t,P\n02/01/2026 03:04:05,1\n02/01/2026 03:04:06,2\n")
    assert "is neither a number nor an ISO 8601 time" in said
    assert "--time-unit" in said


def test_unix_time_in_another_unit_is_recognised_and_not_converted(tmp_path):
    said = refusal(tmp_path, f"t,P\n{T * 1e3:.0f},1\n{T * 1e3 + 1:.0f},2\n")
    assert "say --time-unit ms" in said


def test_a_clock_that_was_set_back(tmp_path):
    said = refusal(tmp_path, "t,P\n0,1\n1,2\n0.5,3\n1.5,2\n2.5,1\n")
    assert "time goes back by 0.5 s" in said
    assert "clock was set" in said
    assert "line 4, column t" in said


def test_rows_that_are_not_sorted(tmp_path):
    rows = "\n".join(f"{t},{t % 3 + 1}" for t in range(20, 0, -1))
    said = refusal(tmp_path, f"t,P\n{rows}\n")
    assert "time goes back by 1 s, and 18 times more" in said
    assert "Sort the file by its time column." in said


def test_a_row_that_is_said_twice_is_taken_once(tmp_path):
    trace = read(tmp_path, "t,P\n0,1\n1,2\n1,2\n2,3\n")
    assert trace.t_s.tolist() == [0, 1, 2]
    assert trace.repeated == 1


def test_one_moment_with_two_values(tmp_path):
    said = refusal(tmp_path, "t,P\n0,1\n1,2\n1,3\n1,4\n2,3\n")
    assert "the time is that of the row before, and the value another (2 such rows)" in said


def test_a_unit_against_the_column_s_own_name(tmp_path):
    text = "t,Power (mW)\n0,1500\n1,1600\n"
    said = refusal(tmp_path, text, "time=t,power=Power (mW)", units={"power": "W"})
    assert "says that it is in mW, and --power-unit says W" in said


def test_negative_power(tmp_path):
    said = refusal(tmp_path, "t,P\n0,-3.1\n1,-3.2\n2,-3.0\n")
    assert "the power is negative (-3.1 W)" in said


def test_a_battery_that_charges_for_a_while(tmp_path):
    said = refusal(tmp_path, "t,P\n0,3\n1,3.2\n2,-1\n3,3\n")
    assert "the power is negative (-1 W)" in said
    assert "line 4" in said


def test_a_frozen_meter(tmp_path):
    rows = "".join(f"{i},5\n" for i in range(20))
    assert "all 20 readings are 5 W" in refusal(tmp_path, f"t,P\n{rows}")


def test_a_counter_that_goes_back(tmp_path):
    said = refusal(tmp_path, "t,E\n0,5\n1,6\n2,0.1\n", "time=t,energy=E")
    assert "the energy counter goes back" in said
    assert "line 4" in said


def test_a_single_reading(tmp_path):
    assert "the trace has 1 reading " in refusal(tmp_path, "t,P\n0,5\n")


# ------------------------------------------------------------------------------------ options


def test_names_of_columns_may_hold_commas_and_equals_signs():
    found = parse_columns("time=Time, s,power=P=U*I, W")
    assert found == {"time": "Time, s", "power": "P=U*I, W"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TIME,POWER",
        "time=t",
        "power=P",
        "time=t,power=P,energy=E",
        "time=t,current=I",
        "time=,power=P",
        "time=a,time=b,power=P",
    ],
)
def test_columns_that_make_no_trace(text):
    with pytest.raises(UsageError, match="--columns"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"units": {"power": "Watts per hour"}}, "no unit of power"),
        ({"units": {"time": "h"}}, "no unit of time"),
        ({"decimal": ";"}, "decimal"),
        ({"delimiter": ",,"}, "one character"),
        ({"delimiter": ",", "decimal": ","}, "both delimiter and decimal"),
        ({"timezone": "Mars/Olympus"}, "no time zone"),
    ],
)
def test_options_that_can_not_be(tmp_path, options, match):
    text = "t,P\n2026-01-02 03:04:05,1\n2026-01-02 03:04:06,2\n"
    with pytest.raises(UsageError, match=match):
        read(tmp_path, text, **options)


def test_every_reading_of_a_long_trace_arrives(tmp_path):
    t = np.arange(50_000) / 1e4
    value = 1 + np.arange(50_000) % 7 / 10
    rows = "\n".join(f"{a:.4f},{b:.1f}" for a, b in zip(t, value, strict=True))
    trace = read(tmp_path, f"t,P\n{rows}")
    assert trace.t_s == pytest.approx(t, abs=1e-9)
    assert trace.value == pytest.approx(value)
