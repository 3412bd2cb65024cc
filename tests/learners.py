"""What learners make of the lessons: right files, and files with mistakes."""

from minibert.lessons.catalogue import LESSONS, file_name, find
from minibert.lessons.folder import EMPTY, lesson_text


def filled(text, name, body):
    """The text of a lesson with a function's body filled in."""
    begin = text.index(f"    {EMPTY}", text.index(f"def {name}("))
    end = text.index("\n", begin)
    return text[:begin] + body.strip("\n") + text[end:]


def right_text(lesson):
    """The text of a lesson as the definition has it."""
    text = lesson_text(lesson)
    for step in lesson.steps:
        text = filled(text, step.name, step.definition.body)
    return text


def solve(folder, *names, part=None):
    """Write right files of some lessons, or of a part."""
    folder.mkdir(exist_ok=True)
    chosen = [find(name) for name in names] or [each for each in LESSONS if each.part == part]
    for lesson in chosen:
        (folder / file_name(lesson)).write_text(right_text(lesson), encoding="utf-8")
    return folder


def with_body(folder, name, body):
    """Write the file of a lesson in which a function, or its only one, has this body; the path."""
    lesson = find(name)
    names = [step.name for step in lesson.steps]
    path = folder / file_name(lesson)
    text = filled(lesson_text(lesson), name if name in names else names[0], body)
    path.write_text(text, encoding="utf-8")
    return path
