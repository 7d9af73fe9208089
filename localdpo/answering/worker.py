"""The process that generates answers for a screen: `python -m localdpo.answering.worker REQUEST`.

REQUEST is an AnswersRequest as JSON. Prints `answers PATH` as soon as the file is known, so that the
screen can follow the file, `note: ...` lines about damage that was passed over, and `error: ...` lines
for what a person can mend (exit code 2) and for a device that gave up (4). Killing it loses nothing that was
written: run it again with the same request to resume.
"""

from __future__ import annotations

import signal
import sys

from localdpo.core.atomic import disk_refusals
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.out import guard, json_text, say, say_device_error, say_errors
from localdpo.records.answers import ANNOUNCEMENT, NOTE, AnswersRequest


def main(request: AnswersRequest) -> None:
    """Generate the request's answers. Raises UserError."""
    from localdpo.answering.generator import answer_request

    answer_request(
        request,
        note=lambda line: say(f"{NOTE}{line}"),
        announce=lambda path: say(f"{ANNOUNCEMENT}{json_text(str(path))}"),
    )


if __name__ == "__main__":
    # The terminal's Ctrl-C is for the screen that started this process, which ends it when it leaves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard()
    try:
        with disk_refusals():
            main(AnswersRequest.from_json(sys.argv[1]))
    except LocalDPOError as error:
        say_errors(error)
        sys.exit(USER_ERROR_EXIT)
    except (RuntimeError, MemoryError) as error:
        sys.exit(say_device_error(error))
