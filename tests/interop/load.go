// Constant load: keep-alive clients that count every answer which is not the one wanted.

package main

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

type load struct {
	url      string
	client   *http.Client
	sent     atomic.Int64
	failed   atomic.Int64
	mutex    sync.Mutex
	failures []string
	stop     chan struct{}
	group    sync.WaitGroup
}

func startLoad(url string, clients int, pause time.Duration) *load {
	l := &load{url: url, stop: make(chan struct{}), client: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			MaxIdleConns: clients * 2, MaxIdleConnsPerHost: clients * 2, DisableCompression: true,
		},
	}}
	for i := 0; i < clients; i++ {
		l.group.Add(1)
		go func() {
			defer l.group.Done()
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(pause):
					l.once()
				}
			}
		}()
	}
	return l
}

func (l *load) once() {
	l.sent.Add(1)
	response, err := l.client.Get(l.url)
	if err == nil {
		var body []byte
		body, err = io.ReadAll(response.Body)
		response.Body.Close()
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d: %s", response.StatusCode, body)
		}
		if err == nil && response.Header.Get("x-hello") == "" {
			err = fmt.Errorf("an answer that no plugin saw: %v", response.Header)
		}
	}
	if err != nil {
		l.failed.Add(1)
		l.mutex.Lock()
		if len(l.failures) < 10 {
			l.failures = append(l.failures, err.Error())
		}
		l.mutex.Unlock()
	}
}

func (l *load) end() {
	close(l.stop)
	l.group.Wait()
}
