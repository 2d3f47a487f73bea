import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import parse_prefix
from lbguard.distributor.nftables import ruleset as nft_ruleset
from lbguard.distributor.nftables.ruleset import decode_name, encode_name, overlap, stream_names

NAMES = stream_names("s")
SHORT_TEXT = st.text(min_size=1, max_size=20)


def rules(*vips: str, names: nft_ruleset.StreamNames = NAMES, seed: int = 0, defragment: bool = False) -> list[str]:
    prefixes = [*map(parse_prefix, vips)]
    return nft_ruleset.rules(names, prefixes, map_name=names.spare, slots=997, seed=seed, defragment=defragment)


def vip_rules(*vips: str) -> list[str]:
    lines = rules(*vips)
    return [line.removeprefix("add rule inet lbguard ") for line in lines if " vips_s ip" in line]


@given(SHORT_TEXT)
def test_a_name_is_encoded_in_safe_characters_and_comes_back(name: str) -> None:
    encoded = encode_name(name)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", encoded)
    assert decode_name(encoded) == name


@given(SHORT_TEXT, SHORT_TEXT)
def test_different_names_stay_different(one: str, other: str) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)


def test_usual_names_read_as_they_are() -> None:
    assert encode_name("stream-a.v2") == "stream-a.v2"
    assert encode_name("a_b c") == "a_5fb_20c"
    assert NAMES.slots == "slots_s"


@pytest.mark.parametrize("name", ["", "x" * 247, "é" * 50])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        encode_name(name)


def test_the_longest_name_fits() -> None:
    assert max(map(len, stream_names("x" * 246))) == 255


@pytest.mark.parametrize("encoded", ["", "a_", "a_4", "a_zz", "a_61", "_c3", "a b", "a_5F"])
def test_what_was_never_encoded_is_refused(encoded: str) -> None:
    with pytest.raises(ValueError):
        decode_name(encoded)


def test_vips_go_to_the_chain_of_their_family_merged() -> None:
    assert vip_rules("20.0.0.1", "20.0.0.0/24", "2000::/127", "2000::2/127") == [
        "vips_s ip daddr { 20.0.0.0/24 } goto ipv4_s",
        "vips_s ip6 daddr { 2000::/126 } goto ipv6_s",
    ]
    assert vip_rules("2000::1") == ["vips_s ip6 daddr { 2000::1/128 } goto ipv6_s"]
    assert vip_rules() == []


def test_defragmentation_is_left_out_where_the_kernel_lacks_it() -> None:
    with_it = rules(defragment=True)
    without = rules(defragment=False)
    assert any("tproxy" in line for line in with_it)
    assert [line for line in with_it if line.split()[4:5] != [nft_ruleset.DEFRAGMENT]] == without


def test_every_lookup_has_the_size_the_seed_and_the_map() -> None:
    lines = rules(seed=0xBEEF, defragment=True)
    lookups = [line for line in lines if "jhash" in line]
    assert lookups
    assert all("mod 997 seed 0xbeef map @spare_s accept" in line for line in lookups)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("20.0.0.1", "20.0.0.1", True),
        ("20.0.0.0/24", "20.0.0.255", True),
        ("20.0.0.255", "20.0.0.0/24", True),
        ("20.0.0.0/24", "20.0.1.0/24", False),
        ("0.0.0.0/0", "2000::/16", False),
        ("::/0", "2000::1", True),
    ],
)
def test_overlap(one: str, other: str, *, expected: bool) -> None:
    assert overlap(parse_prefix(one), parse_prefix(other)) is expected


def test_removal_names_only_what_is_there_and_users_before_what_they_use() -> None:
    assert nft_ruleset.removal(NAMES, (), keep_hook=False) == []
    everything = nft_ruleset.removal(NAMES, NAMES, keep_hook=False)
    removed = [line.split()[-1] for line in everything if line.startswith("delete")]
    assert sorted(removed) == sorted(NAMES)
    assert removed.index("vips_s") < removed.index("ipv4_s") < removed.index("ports4_s") < removed.index("slots_s")
    assert removed.index("ports6_s") < removed.index("spare_s")
    kept = nft_ruleset.removal(NAMES, NAMES, keep_hook=True)
    assert [line for line in everything if line not in kept] == ["delete chain inet lbguard vips_s"]
    assert nft_ruleset.removal(NAMES, ["slots_s", "foreign"], keep_hook=False) == ["delete map inet lbguard slots_s"]
