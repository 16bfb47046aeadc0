package story

import (
	"fmt"
	"strings"

	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/registration/registrationtest"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// corrupt pokes each corruption of the registration into a machine that
// stands still, and resets it.
func (l *Lab) corrupt() error {
	if err := l.Start(); err != nil {
		return err
	}
	if err := l.Warmcore("arm"); err != nil {
		return err
	}
	armed, err := l.readHandoff()
	if err != nil {
		return err
	}
	cases := registrationtest.Fixtures()
	changed, err := changedMap(armed)
	if err != nil {
		return err
	}
	cases = append(cases, changed)
	for i, c := range cases {
		if c.Err == nil && c.Name != changed.Name {
			continue // a fixture of what still loads
		}
		if err := l.Machine.Pause(l.ctx); err != nil {
			return err
		}
		// The whole area is as it was when armed, but for the fixture.
		if err := l.Machine.Poke(l.board.handoff.Start, armed); err != nil {
			return err
		}
		if err := l.Machine.Poke(l.board.handoff.Start, c.Handoff); err != nil {
			return err
		}
		events := l.Machine.Timeline.Events()
		l.booted = events[len(events)-1].T
		if err := l.Machine.Reset(l.ctx); err != nil {
			return err
		}
		if err := l.refusedBy(c.Want, i == 0 || c.Name == changed.Name); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		l.Step("%d of %d: %s: plain boot, %s", i+1, len(cases), c.Name, c.Want)
	}
	return nil
}

// refusedBy checks that the reset led to a plain boot for the reason want: by
// what lies in H when the payload hands over, and, if whole, by the normal
// kernel in user space too.
func (l *Lab) refusedBy(want string, whole bool) error {
	if whole {
		if err := l.waitGuest(); err != nil {
			return err
		}
		if err := l.want(wire.Plain); err != nil {
			return err
		}
	} else if _, err := l.Machine.Wait(l.ctx, "the payload to hand over", handedOver); err != nil {
		return err
	}
	b, err := l.Registration()
	if err != nil {
		return l.Machine.Fail("registration", err)
	}
	if b.State != registration.Prearmed || strings.Contains(b.Kernel.Cmdline, "elfcorehdr=") {
		return l.Machine.Fail("registration", fmt.Errorf("state %v, command line %q; want prearmed, a plain boot's", b.State, b.Kernel.Cmdline))
	}
	return l.wantLog(want)
}

// changedMap is an armed registration of a machine with another memory map.
func changedMap(armed []byte) (registrationtest.Fixture, error) {
	b, err := registration.Load(armed)
	if err != nil {
		return registrationtest.Fixture{}, err
	}
	b.MapHash[0] ^= 1
	h := append([]byte(nil), armed[:registration.CopiesSize]...)
	off, data, err := registration.Store(b, h)
	if err != nil {
		return registrationtest.Fixture{}, err
	}
	copy(h[off:], data)
	return registrationtest.Fixture{Name: "memory map changed", Handoff: h, Want: "memory map changed since arming"}, nil
}
