"""Writes expected.json: what Hugging Face transformers renders of each template here and each of cases.json.

    pip install transformers jinja2
    python make.py

The templates are of the shapes that models come with, written for these tests. transformers takes the date from
the clock, which is set to the date of the tests.
"""

import datetime
import json
import pathlib

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils


class Then(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, tzinfo=tz)


chat_template_utils.datetime = Then
here = pathlib.Path(__file__).parent
cases = json.loads((here / "cases.json").read_text())
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="</s>")),
    bos_token="<s>",
    eos_token="</s>",
)


def rendered(template, case, add_generation_prompt):
    try:
        text = tokenizer.apply_chat_template(
            case["messages"],
            tools=case.get("tools"),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except jinja2.UndefinedError:
        return {"fails": True}
    except jinja2.TemplateError as error:
        return {"raises": error.message}
    except TypeError:
        return {"fails": True}
    return {"text": text}


expected = {
    path.stem: {
        name: [rendered(path.read_text(), case, add) for add in (True, False)] for name, case in cases.items()
    }
    for path in sorted(here.glob("*.jinja"))
}
text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
(here / "expected.json").write_text(text)
