package cuda

import "loratrain/kernels"

// Route is logits = h·routerᵀ. logits (T, E), h (T, D), router (E, D).
func (b *Backend) Route(logits, h, router kernels.Tensor) {
	const op = "Route"
	tokens, width := matrixShape(op, "h", h)
	experts, _ := matrixShape(op, "router", router)
	need(op, "logits", logits, b.Param(), tokens, experts)
	need(op, "h", h, b.Float(), tokens, width)
	need(op, "router", router, b.Param(), experts, width)
	l := Launch{Grid: [3]int{ceil(tokens, 16), ceil(experts, 8)}, Block: [3]int{128}}
	b.dev.Launch("route"+suffix(b.Float()), l, at(logits), at(h), at(router), int32(tokens), int32(experts), int32(width))
}

// RouteGradInput is dh = dlogits·router. dh (T, D), dlogits (T, E), router (E, D).
func (b *Backend) RouteGradInput(dh, dlogits, router kernels.Tensor) {
	const op = "RouteGradInput"
	tokens, experts := matrixShape(op, "dlogits", dlogits)
	_, width := matrixShape(op, "router", router)
	need(op, "dh", dh, b.Float(), tokens, width)
	need(op, "dlogits", dlogits, b.Param(), tokens, experts)
	need(op, "router", router, b.Param(), experts, width)
	// Tokens lie along y, of which a grid has 65535: more than a batch has.
	l := Launch{Grid: [3]int{ceil(width, 256), ceil(tokens, 16)}, Block: [3]int{128}}
	b.dev.Launch("routegradinput"+suffix(b.Float()), l, at(dh), at(dlogits), at(router), int32(tokens), int32(experts), int32(width))
}

// RouteGradWeight adds dlogitsᵀ·h to dr. dr (E, D), dlogits (T, E), h (T, D).
func (b *Backend) RouteGradWeight(dr, dlogits, h kernels.Tensor) {
	const op = "RouteGradWeight"
	tokens, experts := matrixShape(op, "dlogits", dlogits)
	_, width := matrixShape(op, "h", h)
	need(op, "dr", dr, b.Param(), experts, width)
	need(op, "dlogits", dlogits, b.Param(), tokens, experts)
	need(op, "h", h, b.Float(), tokens, width)
	// What is summed where depends on the shapes alone, so that every card gives the same bits.
	parts := max(1, min(ceil(tokens, 64), 128, workspaceBytes/dr.Bytes()))
	part := ceil(tokens, parts)
	parts = ceil(tokens, part)
	to, add := at(dr), int32(1)
	if parts > 1 {
		to, add = at(b.scratch(b.Param(), 0, parts, experts, width)), 0
	}
	warps := min(4, ceil(experts, 8))
	l := Launch{Grid: [3]int{ceil(width, 256), parts, ceil(experts, 8*warps)}, Block: [3]int{32 * warps}}
	b.dev.Launch("routegradweight"+suffix(b.Float()), l, to, at(dlogits), at(h),
		int32(tokens), int32(experts), int32(width), int32(part), add)
	if parts > 1 {
		b.dev.Launch("routegradweight_sum", threads1(dr.Len(), 1), at(dr), to, int32(parts), int64(dr.Len()))
	}
}
