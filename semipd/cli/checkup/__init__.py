"""What a machine has and lacks: `survey_...` looks and judges nothing, `check_...` judges what was seen and looks at
nothing."""

from semipd.cli.checkup.examination import examine

__all__ = ["examine"]
