"""A request that lacks fields is told all of them at once, whatever else its body brings."""

import pandas as pd
import pytest

from nbs_lib.bundle.request import RequestError, RequestParser
from nbs_lib.testing.same_answers import learn_table


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> RequestParser:
    """Of a table whose columns all have values, one of them with a name that msgspec can't have."""
    path = tmp_path_factory.mktemp("request") / "t.csv"
    columns = {
        "age": [k % 17 for k in range(40)],
        'a "b"': [k * k % 97 for k in range(40)],
        "bmi": [k / 7 for k in range(40)],
    }
    pd.DataFrame(columns | {"y": ["u", "v"] * 20}).to_csv(path, index=False)
    return RequestParser(learn_table(path, read={}).bundle)


@pytest.mark.parametrize(
    ("body", "sentence", "field", "row"),
    [
        ("{}", "the fields 'age', 'a \"b\"' and 'bmi' are missing.", "age", None),
        ('{"bmi": 1}', "the fields 'age' and 'a \"b\"' are missing.", "age", None),
        ('{"age": 1, "bmi": null}', "the field 'a \"b\"' is missing.", 'a "b"', None),
        (
            '[{"age": 1, "a \\"b\\"": 2, "bmi": 3}, {"a \\"b\\"": 2}]',
            "row 2: the fields 'age' and 'bmi' are missing.",
            "age",
            2,
        ),
    ],
)
def test_all_missing_fields_are_named(
    parser: RequestParser, body: str, sentence: str, field: str, row: int | None
) -> None:
    with pytest.raises(RequestError) as error:
        parser.read(body.encode())
    assert (error.value.status, str(error.value), error.value.field, error.value.row) == (422, sentence, field, row)


@pytest.mark.parametrize("body", ['{"missing": 1}', '{"missing - at `$[9]": 1}', '[{"missing - at `$[9]": 1}]'])
def test_a_field_may_be_called_what_an_error_says(parser: RequestParser, body: str) -> None:
    with pytest.raises(RequestError, match="there is no field") as error:
        parser.read(body.encode())
    assert error.value.status == 422


def test_a_body_that_ends_within_a_row_is_no_json(parser: RequestParser) -> None:
    with pytest.raises(RequestError, match="the body is not JSON") as error:
        parser.read(b'[{"age": 1}, {')
    assert error.value.status == 400
