// Asks a fleet with nothing but nats.go (go get github.com/nats-io/nats.go).
//
//	go run client.go nats://127.0.0.1:4222 ask adder '123+456='
//	go run client.go nats://127.0.0.1:4222 follow REQUEST 0      # its events after sequence 0: all of them
//	go run client.go nats://127.0.0.1:4222 cancel REQUEST
//	go run client.go nats://127.0.0.1:4222 infer adder '2+2='
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	usage     = "client URL ask MODEL PROMPT | follow REQUEST AFTER | cancel REQUEST | infer MODEL PROMPT"
	queueFull = 10077
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal(usage)
	}
	connection, err := nats.Connect(os.Args[1], nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	if err := run(connection, os.Args[2], os.Args[3:]); err != nil {
		log.Fatal(err)
	}
}

func run(connection *nats.Conn, command string, words []string) error {
	switch {
	case command == "ask" && len(words) == 2:
		bits := make([]byte, 16)
		if _, err := rand.Read(bits); err != nil {
			return err
		}
		request := hex.EncodeToString(bits)
		log.Println("request", request)
		if err := publish(connection, request, words[0], body(words[1])); err != nil {
			return err
		}
		return follow(connection, request, 0, printEvent)
	case command == "follow" && len(words) == 2:
		after, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return err
		}
		return follow(connection, words[0], after, printEvent)
	case command == "cancel" && len(words) == 1:
		return cancel(connection, words[0])
	case command == "infer" && len(words) == 2:
		text, err := infer(connection, words[0], body(words[1]))
		if err == nil {
			fmt.Println(text)
		}
		return err
	default:
		return errors.New(usage)
	}
}

func body(prompt string) []byte {
	encoded, err := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": 16})
	if err != nil {
		panic(err) // Texts and numbers can be written.
	}
	return encoded
}

// token is a model's name as one token of a subject.
func token(model string) string {
	var escaped strings.Builder
	for _, character := range []byte(model) {
		switch {
		case character >= 'a' && character <= 'z', character >= 'A' && character <= 'Z',
			character >= '0' && character <= '9', character == '-', character == '_':
			escaped.WriteByte(character)
		default:
			fmt.Fprintf(&escaped, "=%02X", character)
		}
	}
	return escaped.String()
}

// publish publishes a request until the server has stored it; the id makes a second publish harmless.
func publish(connection *nats.Conn, request, model string, body []byte) error {
	stream, err := connection.JetStream()
	if err != nil {
		return err
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		message := nats.NewMsg("flotilla.request.interactive." + token(model))
		message.Header.Set("Nats-Msg-Id", request)
		message.Header.Set("Content-Type", "application/json")
		message.Data = body
		_, err := stream.PublishMsg(message)
		var refusal *nats.APIError
		switch {
		case err == nil:
			return nil
		case errors.Is(err, nats.ErrTimeout):
			log.Println("not confirmed, once more")
		case errors.As(err, &refusal) && refusal.ErrorCode == queueFull:
			log.Println("busy:", refusal.Description)
		default:
			return err
		}
		time.Sleep(pause)
	}
}

func min(one, other time.Duration) time.Duration {
	if one < other {
		return one
	}
	return other
}

// follow gives the events of a request after a sequence, each stored one once and in order, whatever the network does.
//
// Live events are republished by the server and may be lost; each names the one before it, so that a gap is seen.
func follow(connection *nats.Conn, request string, after uint64, take func(uint64, *nats.Msg)) error {
	live, err := connection.SubscribeSync("flotilla.events." + request)
	if err != nil {
		return err
	}
	defer live.Unsubscribe()
	for missed := true; ; {
		var events []*nats.Msg
		if missed {
			if events, err = replay(connection, request, after); err != nil {
				return err
			}
			missed = len(events) > 0
		} else {
			event, err := live.NextMsg(3 * time.Second)
			if errors.Is(err, nats.ErrTimeout) {
				missed = true
				continue
			} else if err != nil {
				return err
			}
			sequence := number(event, "Nats-Sequence")
			if sequence > 0 && sequence <= after {
				continue
			}
			if sequence > 0 && number(event, "Nats-Last-Sequence") != after {
				missed = true
				continue
			}
			events = append(events, event)
		}
		for _, event := range events {
			// Progress is not stored and has no sequence.
			sequence := number(event, "Nats-Sequence")
			if sequence > 0 {
				after = sequence
			}
			take(sequence, event)
			if kind := event.Header.Get("Flotilla-Event"); kind == "finished" || kind == "failed" {
				return nil
			}
		}
	}
}

// replay gives stored events of a request after a sequence; none if nobody can be asked at the moment.
func replay(connection *nats.Conn, request string, after uint64) ([]*nats.Msg, error) {
	inbox := connection.NewRespInbox()
	answers, err := connection.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer answers.Unsubscribe()
	question := fmt.Sprintf(`{"after": %d}`, after)
	if err := connection.PublishRequest("flotilla.replay."+request, inbox, []byte(question)); err != nil {
		return nil, err
	}
	var stored []*nats.Msg
	for {
		answer, err := answers.NextMsg(5 * time.Second)
		if errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if refusal := answer.Header.Get("Nats-Service-Error"); refusal != "" {
			return nil, errors.New(refusal)
		}
		if answer.Header.Get("Status") != "" {
			return stored, nil
		}
		stored = append(stored, answer)
	}
}

// number is one out of a header; 0 where there is none.
func number(message *nats.Msg, header string) uint64 {
	value, _ := strconv.ParseUint(message.Header.Get(header), 10, 64)
	return value
}

func printEvent(sequence uint64, event *nats.Msg) {
	fmt.Println(sequence, event.Header.Get("Flotilla-Event"), string(event.Data))
}

// cancel ends a request wherever it is; its journal gets a terminal event all the same.
func cancel(connection *nats.Conn, request string) error {
	order, err := json.Marshal(map[string]string{"request": request})
	if err != nil {
		return err
	}
	if err := connection.Publish("flotilla.cancel", order); err != nil {
		return err
	}
	return connection.Flush()
}

// infer gives one whole answer, which comes in OpenAI's shape.
func infer(connection *nats.Conn, model string, body []byte) (string, error) {
	answer, err := connection.Request("flotilla.infer."+token(model), body, 5*time.Minute)
	if err != nil {
		return "", err
	}
	if refusal := answer.Header.Get("Nats-Service-Error"); refusal != "" {
		return "", errors.New(refusal)
	}
	var completion struct{ Choices []struct{ Text string } }
	if err := json.Unmarshal(answer.Data, &completion); err != nil {
		return "", err
	}
	if len(completion.Choices) == 0 {
		return "", errors.New("an answer without a choice")
	}
	return completion.Choices[0].Text, nil
}
