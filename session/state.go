package session

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
	"weak"

	"github.com/gorilla/sessions"
)

// state is what the store knows about a *sessions.Session beyond its public
// fields. Like the session it belongs to one request and is not locked.
type state struct {
	home  *home // whose session it is, see Store.state
	name  string
	tok   token // of the session in Redis; zero if there is none yet
	saved status
	blob  *blob // of a session in redisstore's layout
	meta  meta
	ttl   time.Duration // that was left at loadedAt; 0: not known
	at    time.Time     // when meta and ttl were read

	next    string  // of a renewed one: the hash of the next key
	base    []entry // what Redis holds
	lost    []field // what of it could not be decoded
	bond    *bond   // of its encrypted values, if it has one
	sealing sealing
	held    string           // the field e: what the bond was read from
	other   []field          // the fields with prefixOther
	bytes   int              // of all names and values, with undecodable ones
	user    string           // that Redis has
	bind    *string          // pending Bind
	was     sessions.Options // as New returned them or the last save used them

	foundling bool // the app made the session, it does not come from New
	resend    bool // a persistent cookie has aged, send it again with the response

	inline [4]entry // room for a small base, allocated with the rest

	carried *sessions.Session // read from Config.Legacy, to be deleted there
}

// status says what is known of a session in Redis.
type status uint8

const (
	absent    status = iota // nothing stored under this session
	stored                  // loaded or saved
	unasked                 // a token was presented and Redis could not be asked
	destroyed               // deleted by this request
	renewed                 // a token was presented that another one has superseded
)

// box is a session as New makes it, with what belongs to it in one allocation.
type box struct {
	s    sessions.Session // first, so that it is found by s
	opts sessions.Options
	x    state
}

// newBox returns a session called name as sessions.NewSession makes it.
func (st *Store) newBox(name string) *box {
	blank := st.blank.Load()
	if blank == nil || blank.Name() != name {
		blank = sessions.NewSession(st, name)
		st.blank.Store(blank)
	}
	b := &box{s: *blank}
	b.s.Values = make(map[any]any)
	b.s.Options = &b.opts
	return b
}

// entry is one key of Values as Redis holds it.
type entry struct {
	key   any
	field field    // name is empty if the entry has only items
	list  *[]field // of a []any, a field for each element; nil: none
}

func (e *entry) items() []field {
	if e.list == nil {
		return nil
	}
	return *e.list
}

func (e *entry) setItems(items []field) {
	if e.list = nil; len(items) > 0 {
		e.list = &items
	}
}

func (e *entry) empty() bool { return e.field.name == "" && e.list == nil }

// edit is what a save does to an entry of the base.
type edit struct {
	at   int
	next entry // with neither field nor items: the entry goes
}

// field is a field of the hash: its name and what Redis holds.
type field struct {
	name, held string
	plain      *string // the value, if it is encrypted
}

func (f *field) value() string {
	if f.plain != nil {
		return *f.plain
	}
	return f.held
}

// The table of states finds a session's state whatever request it is saved
// with: the request's context is replaced too often to be of use, and Values are
// the app's. Sessions are held weakly, so that the table keeps none alive, and
// found by address, which is theirs while they live.
var table [32]struct {
	sync.Mutex
	m map[uintptr]filed
}

type filed struct {
	of weak.Pointer[sessions.Session]
	x  *state // nil: that of the session's box
}

func place(s *sessions.Session) (shard int, addr uintptr) {
	addr = uintptr(unsafe.Pointer(s))
	return int(addr / unsafe.Sizeof(*s) % uintptr(len(table))), addr
}

// remember files a state under s. A nil x stands for that of the box that s is in.
func remember(s *sessions.Session, x *state) {
	entry := filed{weak.Make(s), x}
	i, addr := place(s)
	t := &table[i]
	t.Lock()
	if t.m == nil {
		t.m = make(map[uintptr]filed)
	}
	t.m[addr] = entry
	t.Unlock()
	if !sweeping.Load() && sweeping.CompareAndSwap(false, true) {
		sweepNext()
	}
}

func recall(s *sessions.Session) *state {
	if s == nil {
		return nil
	}
	i, addr := place(s)
	t := &table[i]
	t.Lock()
	entry := t.m[addr]
	t.Unlock()
	if entry.of.Value() != s { // of one that had this address before, or none
		return nil
	}
	if entry.x == nil {
		return &(*box)(unsafe.Pointer(s)).x
	}
	return entry.x
}

// sweeping says that the next garbage collection is waited for.
var sweeping atomic.Bool

// sweepNext has the table swept when the next garbage collection has found out
// which sessions are gone: a cleanup for a collection is cheaper than one for each
// session.
func sweepNext() {
	type mark struct{ _ [4]uint64 } // too large to share its memory with what lives on
	runtime.AddCleanup(new(mark), func(struct{}) {
		if sweep() > 0 {
			sweepNext()
			return
		}
		sweeping.Store(false)
		if sweep() > 0 && sweeping.CompareAndSwap(false, true) { // filed meanwhile
			sweepNext()
		}
	}, struct{}{})
}

// sweep removes the states of sessions that nobody refers to any more, and
// returns how many are left.
func sweep() (left int) {
	for i := range table {
		t := &table[i]
		t.Lock()
		for addr, entry := range t.m {
			if entry.of.Value() == nil {
				delete(t.m, addr)
			}
		}
		left += len(t.m)
		t.Unlock()
	}
	return left
}

// home identifies where a session is kept, so that another Store over the same
// client and prefix, which apps make for each request, can go on with it.
type home struct {
	client any // comparable, or this home's own address
	prefix string
}

func (h *home) same(o *home) bool { return h == o || *h == *o }

// state returns what is known of s, or nil if s is not from this store.
func (st *Store) state(s *sessions.Session) *state {
	if x := recall(s); x != nil && x.home.same(st.home()) {
		return x
	}
	return nil
}

// own is state, but gives a session that is not from this store a state of its
// own: one that has nothing stored.
func (st *Store) own(s *sessions.Session) *state {
	x := st.state(s)
	if x == nil {
		x = &state{home: st.home(), name: s.Name(), foundling: true}
		if s.Options != nil {
			x.was = *s.Options
		}
		remember(s, x)
	}
	return x
}

// ID returns the public id of s: safe to log and to show, the same until the
// session is regenerated, and of no use as a cookie. It is "" for a session that
// is not stored.
func ID(s *sessions.Session) string {
	if x := recall(s); x != nil && x.saved == stored {
		return x.tok.id
	}
	return ""
}

// Loaded reports whether the content of s is what Redis holds. It is false for a
// session that could not be loaded because Redis could not be asked: such a
// session starts empty, and saving it changes the values that the app set and no
// others.
func Loaded(s *sessions.Session) bool {
	x := recall(s)
	return x == nil || x.saved != unasked
}
