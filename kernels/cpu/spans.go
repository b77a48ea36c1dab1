package cpu

// rows is the range [from, to) of an array's rows.
type rows struct{ from, to int }

func (r rows) len() int { return r.to - r.from }

// segment is consecutive tokens [from, to) whose attention is computed in one tile, and the two ranges of keys
// that its tokens see some of.
type segment struct {
	from, to int
	keys     [2]rows
}

// width is the columns of the tile.
func (s segment) width() int { return s.keys[0].len() + s.keys[1].len() }

// visible is the columns of the tile that token t sees, in ascending order.
func (s segment) visible(spans []int32, t int) [2]rows {
	v := seen(spans, t)
	for i, shift := range [2]int{s.keys[0].from, s.keys[1].from - s.keys[0].len()} {
		if v[i].len() > 0 {
			v[i] = rows{v[i].from - shift, v[i].to - shift}
		}
	}
	return v
}

// seen is the two ranges of keys of token t, (0, 0) if empty.
func seen(spans []int32, t int) [2]rows {
	var v [2]rows
	for i := range v {
		from, to := int(spans[4*t+2*i]), int(spans[4*t+2*i+1])
		if from < to {
			v[i] = rows{from, to}
		}
	}
	return v
}

// single is the segment of one token.
func single(spans []int32, t int) segment { return segment{t, t + 1, seen(spans, t)} }

const (
	segmentTokens = 64      // most tokens of a segment
	segmentTile   = 1 << 18 // most elements of a tile with more than one token
)

// plan groups tokens into segments: as many as see the same keys or nearly so, in particular those of one
// sequence, whose ranges grow by one. At most half of a tile's columns are not seen, and none by no token.
// group is the rows that a token has in a tile.
func plan(op string, spans []int32, keys, group int) []segment {
	var all []segment
	covered := 0 // columns that the last segment's tokens see, summed over them
	for t := range len(spans) / 4 {
		next := single(spans, t)
		for _, r := range next.keys {
			if r.from < 0 || r.to > keys {
				fail(op, "spans[%d] is %v, expected ranges of %d rows", t, spans[4*t:4*t+4], keys)
			}
		}
		if len(all) > 0 {
			last := &all[len(all)-1]
			joined, ok := last.join(next)
			tokens := t + 1 - last.from
			tile := tokens * joined.width()
			if ok && tokens <= segmentTokens && tile <= 2*(covered+next.width()) && tile*group <= segmentTile {
				*last = joined
				covered += next.width()
				continue
			}
		}
		all = append(all, next)
		covered = next.width()
	}
	return all
}

// join is s with the token of next. It is refused if the ranges of the two do not meet.
func (s segment) join(next segment) (segment, bool) {
	meets := false
	for i, r := range next.keys {
		have := s.keys[i]
		switch {
		case r.len() == 0:
		case have.len() == 0:
			s.keys[i] = r
		case r.from > have.to || r.to < have.from:
			return s, false
		default:
			s.keys[i] = rows{min(r.from, have.from), max(r.to, have.to)}
			meets = true
		}
	}
	s.to = next.to
	return s, meets
}

// families groups segments, by index, so that no row of k is seen from two families.
func families(all []segment, keys int) [][]int {
	// A union-find forest over the segments; owner remembers the last segment that saw a row.
	parent, owner := make([]int, len(all)), make([]int, keys)
	root := func(i int) int {
		for parent[i] != i {
			parent[i] = parent[parent[i]]
			i = parent[i]
		}
		return i
	}
	for i := range owner {
		owner[i] = -1
	}
	for i, s := range all {
		parent[i] = i
		for _, r := range s.keys {
			for row := r.from; row < r.to; row++ {
				if owner[row] >= 0 {
					a, b := root(owner[row]), root(i)
					parent[max(a, b)] = min(a, b)
				}
				owner[row] = i
			}
		}
	}
	number := make(map[int]int)
	var out [][]int
	for i := range all {
		r := root(i)
		if _, ok := number[r]; !ok {
			number[r] = len(out)
			out = append(out, nil)
		}
		out[number[r]] = append(out[number[r]], i)
	}
	return out
}
