"""Everything that a decode round does to its rows after the choice of tokens, in one op."""

from dlm_kernels.ops.advance_rows.op import advance_rows
from dlm_kernels.ops.advance_rows.reference import AdvancedRows, RowHints, RowState

__all__ = ["AdvancedRows", "RowHints", "RowState", "advance_rows"]
