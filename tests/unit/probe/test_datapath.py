from lbguard.probe.datapath import Histogram


def test_values_are_counted_up_to_each_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for value_s, times in ((0.1, 1), (0.11, 2), (1.0, 3), (5.0, 4)):
        histogram.add(value_s, times)
    assert histogram.counts == [1, 5, 4]
    assert round(histogram.sum_s, 6) == 0.1 + 0.22 + 3.0 + 20.0
