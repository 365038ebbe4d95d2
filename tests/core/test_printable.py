from ulskip_cli.core.printable import all_printable


def test_keys_and_texts_of_nested_values_are_printable_texts():
    value = {12: [1.5, None, "a\x1b[31m"], "b\n": {True: "c"}}
    assert all_printable(value) == {"12": [1.5, None, "a\\x1b[31m"], "b ": {"True": "c"}}
