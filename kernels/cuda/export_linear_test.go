package cuda

import "loratrain/kernels"

// WorkspaceBytes is the size of the workspace.
const WorkspaceBytes = workspaceBytes

// Pieces is how operations divide tokens whose hidden numbers do not fit into the workspace.
var Pieces = pieces

// LinearBehind is Linear without a bias, and LinearGradBehind LinearGrad, with the workspace in use up to byte used.
func (b *Backend) LinearBehind(y, x, w kernels.Tensor, used int) { b.timesTransposed(y, x, w, 0, used) }

func (b *Backend) LinearGradBehind(dx, dy, w kernels.Tensor, used int) { b.times(dx, dy, w, 0, used) }
