"""Attribute files and their encoding."""

import re

import numpy as np
import pytest
import scipy.io

from mmfa.data.attributes import AGES, DUKE, DUKE_FIELDS, MARKET, MARKET_FIELDS, common, encode, read_mat, write_mat
from mmfa.data.records import AttributeCodes
from mmfa.errors import DataError


def some_codes(num=6, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 3, (num, len(MARKET_FIELDS)), dtype=np.uint8)
    codes[:, MARKET_FIELDS.index("age")] = 1 + np.arange(num) % 4
    return AttributeCodes(fields=MARKET_FIELDS, pids=np.arange(2, 2 + 2 * num, 2), codes=codes)


def raw_structs(path):
    """The file's structs as plain dictionaries, to be damaged and saved again."""
    structs = scipy.io.loadmat(path, simplify_cells=True)["market_attribute"]
    return {
        split: {
            name: np.array(column, dtype=object if name == "image_index" else np.uint8)[None]
            for name, column in struct.items()
        }
        for split, struct in structs.items()
    }


def save_structs(path, structs):
    scipy.io.savemat(path, {"market_attribute": structs})


@pytest.fixture
def mat(tmp_path):
    path = tmp_path / "market_attribute.mat"
    write_mat(path, some_codes(), kind=MARKET, train_pids=np.array([2, 6, 12]))
    return path


def assert_same_codes(found, wanted):
    assert found.fields == wanted.fields
    np.testing.assert_array_equal(found.pids, wanted.pids)
    np.testing.assert_array_equal(found.codes, wanted.codes)


def test_written_codes_are_read_back_with_train_and_test_joined(mat):
    assert set(raw_structs(mat)["train"]["image_index"][0]) == {"0002", "0006", "0012"}
    assert_same_codes(read_mat(mat, MARKET), some_codes())


def test_a_file_of_one_identity_each_is_read(tmp_path):
    write_mat(tmp_path / "a.mat", some_codes(num=2), kind=MARKET, train_pids=np.array([2]))
    assert_same_codes(read_mat(tmp_path / "a.mat", MARKET), some_codes(num=2))


def test_the_same_codes_give_the_same_bytes(mat, tmp_path):
    write_mat(tmp_path / "again.mat", some_codes(), kind=MARKET, train_pids=np.array([2, 6, 12]))
    assert mat.read_bytes() == (tmp_path / "again.mat").read_bytes()


def test_fields_and_structs_are_found_by_name_in_any_order(mat, tmp_path):
    structs = raw_structs(mat)
    rng = np.random.default_rng(1)
    permuted = {
        split: {name: structs[split][name] for name in rng.permutation(list(structs[split]))}
        for split in ("train", "test")
    }
    save_structs(tmp_path / "permuted.mat", permuted)
    assert list(permuted["train"]) != list(permuted["test"]) != list(structs["test"])
    assert_same_codes(read_mat(tmp_path / "permuted.mat", MARKET), some_codes())


@pytest.mark.parametrize(
    ("field", "code", "message"),
    [
        ("hat", 3, r"Codes of 'hat' must be 1 to 2, .* train has 3 for identity 0006"),
        ("age", 5, r"Codes of 'age' must be 1 to 4, .* train has 5 for identity 0006"),
        ("upred", 255, r"'upred'.* 255 for identity 0006"),
        ("upred", 1.5, r"'upred'.* 1.5 for identity 0006"),
    ],
)
def test_a_code_out_of_range_is_an_error(mat, field, code, message):
    structs = raw_structs(mat)
    column = structs["train"][field].astype(type(code))
    column[0, 1] = code
    structs["train"][field] = column
    save_structs(mat, structs)
    with pytest.raises(DataError, match=message):
        read_mat(mat, MARKET)


def test_a_missing_field_is_an_error(mat):
    structs = raw_structs(mat)
    del structs["test"]["downbrown"]
    save_structs(mat, structs)
    with pytest.raises(DataError, match=r"test lacks downbrown"):
        read_mat(mat, MARKET)


def test_a_missing_struct_is_an_error(mat):
    save_structs(mat, {"train": raw_structs(mat)["train"]})
    with pytest.raises(DataError, match=r"'train' and 'test', but train was found"):
        read_mat(mat, MARKET)


def test_another_dataset_is_an_error(mat):
    scipy.io.savemat(mat, {"duke_attribute": raw_structs(mat)})
    with pytest.raises(DataError, match=r"but duke_attribute was found"):
        read_mat(mat, MARKET)


def test_an_identity_annotated_twice_is_an_error(mat):
    structs = raw_structs(mat)
    structs["test"]["image_index"][0, 0] = "0006"
    save_structs(mat, structs)
    with pytest.raises(DataError, match=r"identity 6 twice"):
        read_mat(mat, MARKET)


def test_columns_of_other_lengths_are_an_error(mat):
    structs = raw_structs(mat)
    structs["train"]["hat"] = structs["train"]["hat"][:, :2]
    save_structs(mat, structs)
    with pytest.raises(DataError, match=r"2 of 'hat' for 3 identities"):
        read_mat(mat, MARKET)


@pytest.mark.parametrize("name", ["two", "6", "00006", "+006", " 006", "0_06", "٠٠٠٦", 6.0])
def test_an_index_that_is_no_identity_is_an_error(mat, name):
    structs = raw_structs(mat)
    structs["train"]["image_index"][0, 0] = name
    save_structs(mat, structs)
    with pytest.raises(DataError, match=re.escape(f"must name identities like '0002', but {mat}, train has '{name}'")):
        read_mat(mat, MARKET)


@pytest.mark.parametrize("content", [b"", b"not a mat file" * 50])
def test_another_file_is_an_error(mat, content):
    mat.write_bytes(content)
    with pytest.raises(DataError, match="must be a MATLAB v5"):
        read_mat(mat, MARKET)


def test_a_truncated_file_is_an_error(mat):
    mat.write_bytes(mat.read_bytes()[:-200])
    with pytest.raises(DataError, match="market_attribute.mat"):
        read_mat(mat, MARKET)


@pytest.mark.parametrize(("age", "num_columns"), [("onehot", 30), ("binary", 27), ("drop", 26)])
def test_readings_of_age(age, num_columns):
    codes = some_codes()
    table = encode(codes, age=age)
    assert table.values.shape == table.mask.shape == (6, num_columns)
    assert len(set(table.names)) == len(table.names) == num_columns
    assert table.values.dtype == np.float32 and table.mask.all()
    for row, code in enumerate(codes.codes[:, MARKET_FIELDS.index("age")]):
        of_age = {name: table.values[row, i] for i, name in enumerate(table.names) if name.startswith("age")}
        if age == "onehot":
            assert of_age == {f"age_{name}": float(i == code) for i, name in enumerate(AGES, start=1)}
        if age == "binary":
            assert of_age == {"age_adult_or_old": float(code in (3, 4))}
        if age == "drop":
            assert of_age == {}


def test_two_valued_fields_keep_their_name_and_missing_codes_are_masked():
    codes = some_codes()
    hat, age = MARKET_FIELDS.index("hat"), MARKET_FIELDS.index("age")
    codes.codes[:, hat] = [0, 1, 2, 0, 1, 2]
    codes.codes[0, age] = 0
    table = encode(codes, age="onehot")
    column = table.names.index("hat")
    np.testing.assert_array_equal(table.values[:, column], [0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(table.mask[:, column], [False, True, True, False, True, True])
    ages = [i for i, name in enumerate(table.names) if name.startswith("age")]
    assert not table.mask[0, ages].any() and not table.values[0, ages].any()
    assert table.mask[1, ages].all()


def test_rows_are_found_by_identity():
    table = encode(some_codes(), age="drop")
    values, mask = table.rows(np.array([12, 2, 12]))
    np.testing.assert_array_equal(values, table.values[[5, 0, 5]])
    assert mask.shape == values.shape
    with pytest.raises(DataError, match="identity 3 is not in"):
        table.rows(np.array([2, 3]))


# DukeMTMC


def duke_codes(num=8):
    rng = np.random.default_rng(3)
    codes = rng.integers(1, 3, (num, len(DUKE_FIELDS)), dtype=np.uint8)
    codes[0, DUKE_FIELDS.index("top")] = 0
    return AttributeCodes(fields=DUKE_FIELDS, pids=np.array([1, 5, 370, 679, 702, 7000, 7001, 7139])[:num], codes=codes)


def test_dukes_file_is_read_by_name_and_its_structs_come_in_the_other_order(tmp_path):
    for kind, codes, order in ((MARKET, some_codes(), ["test", "train"]), (DUKE, duke_codes(), ["train", "test"])):
        path = tmp_path / kind.file
        write_mat(path, codes, kind=kind, train_pids=codes.pids[:3])
        structs = scipy.io.loadmat(path, simplify_cells=True)[kind.struct]
        assert list(structs) == order
        assert list(structs["train"]) != list(structs["test"]) and set(structs["train"]) == set(structs["test"])
        assert_same_codes(read_mat(path, kind), codes)


@pytest.mark.parametrize("age", ["onehot", "binary", "drop"])
def test_duke_has_23_columns_whatever_the_reading_of_age_and_0_is_masked(age):
    table = encode(duke_codes(), age=age)
    assert table.names == DUKE_FIELDS and len(DUKE_FIELDS) == 23
    missing = np.zeros((8, 23), bool)
    missing[0, DUKE_FIELDS.index("top")] = True
    np.testing.assert_array_equal(table.mask, ~missing)
    np.testing.assert_array_equal(table.values, duke_codes().codes == 2)


def test_the_other_datasets_file_is_refused(tmp_path):
    write_mat(tmp_path / "a.mat", duke_codes(), kind=DUKE, train_pids=np.array([1]))
    with pytest.raises(
        DataError, match="struct 'market_attribute' .* but duke_attribute was found; use the file of the"
    ):
        read_mat(tmp_path / "a.mat", MARKET)
    write_mat(tmp_path / "b.mat", some_codes(), kind=MARKET, train_pids=np.array([2]))
    with pytest.raises(DataError, match="struct 'duke_attribute' .* use the file of the DukeMTMC-attribute release"):
        read_mat(tmp_path / "b.mat", DUKE)


def test_the_common_attributes_are_the_18_by_name():
    wanted = [
        "gender",
        "hat",
        "backpack",
        "bag",
        "handbag",
        "upblack",
        "upwhite",
        "upred",
        "uppurple",
        "upgray",
        "upblue",
        "upgreen",
        "downblack",
        "downwhite",
        "downgray",
        "downblue",
        "downgreen",
        "downbrown",
    ]
    assert len(wanted) == 18
    assert list(common(MARKET_FIELDS, DUKE_FIELDS)) == wanted
    assert sorted(common(DUKE_FIELDS, MARKET_FIELDS)) == sorted(wanted)
    assert list(common(encode(some_codes(), age="onehot").names, encode(duke_codes(), age="onehot").names)) == wanted
    assert common(("a", "b"), ("c",)) == ()
