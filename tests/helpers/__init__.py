"""What tests share."""

from helpers.checking import checked as checked
