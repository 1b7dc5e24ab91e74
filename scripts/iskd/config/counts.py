"""How many of a teacher's blocks are substituted."""

from iskd.config.schema import GivenTeacher, Teacher


def block_count(teacher: Teacher) -> int:
    """Count the blocks of a teacher, as its config states them."""
    return teacher.blocks if isinstance(teacher, GivenTeacher) else teacher.architecture.blocks


def step_count(teacher: Teacher) -> int:
    """Count the substitutions made in a teacher."""
    if teacher.steps is not None:
        return teacher.steps
    return len(teacher.order) if isinstance(teacher.order, list) else block_count(teacher)
